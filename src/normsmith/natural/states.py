"""What an optimizer remembers of a parameter whose coordinates change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normsmith.natural.coordinates import Coordinates, between
from normsmith.natural.geometry import Geometry

Moments = Literal["reset", "transform"]
_VELOCITIES = ("momentum_buffer",)  # of SGD and RMSprop: a displacement of the parameter
_SLOPES = ("exp_avg", "grad_avg")  # averages of gradients
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # averages of their squares


@dataclass(frozen=True, eq=False)
class Change:
    """The parameters of one layer, and their coordinates before and after."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    geometry: Geometry
    old: Coordinates
    new: Coordinates


class Followers:
    """The optimizers that are told of a change of coordinates. A copy or pickle of the model leaves them behind: they are not its own."""

    def __init__(self, optimizers: Sequence[Optimizer] = (), moments: Moments = "reset") -> None:
        self.optimizers, self.moments = tuple(optimizers), moments

    def __deepcopy__(self, memo: dict[int, Any]) -> "Followers":
        return Followers()

    def __reduce__(self) -> Any:
        return Followers, ()

    def tell(self, change: Change) -> None:
        """Reset or transform what each has of the parameters."""
        for optimizer in self.optimizers:
            states = [dict(optimizer.state.get(p, {})) for p in (change.weight, change.bias) if p is not None]
            if self.moments == "reset" or not all(_known(s, change.weight) for s in states):
                for parameter in (p for p in (change.weight, change.bias) if p is not None):
                    optimizer.state.pop(parameter, None)
            else:
                _transform(optimizer, change)


def _known(state: dict[str, Any], like: Tensor) -> bool:
    """Whether all that a state holds in the shape of a parameter is of a kind that can be carried over."""
    held = [key for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0]
    return all(key in (*_VELOCITIES, *_SLOPES, *_SQUARES) for key in held)


def _transform(optimizer: Optimizer, change: Change) -> None:
    old, new, blocks = change.old, change.new, change.geometry.blocks
    for key in (*_VELOCITIES, *_SLOPES, *_SQUARES):
        weight = optimizer.state.get(change.weight, {}).get(key)
        if not isinstance(weight, Tensor):
            continue
        bias = None if change.bias is None else optimizer.state.get(change.bias, {}).get(key)
        v = blocks(weight).double()
        d = v.new_zeros(v.shape[:2]) if bias is None else bias.double().view(v.shape[:2])
        if key in _VELOCITIES:
            whole, shift = old.function(v, d)
            assert shift is not None
            v, d = new.parameters(whole, shift)
        elif key in _SLOPES:
            v, d = new.slopes(*old.slopes_of_function(v, d))
        else:
            v, d = _squares(v, d, old, new)
        with torch.no_grad():
            weight.copy_(change.geometry.unblocked(v))
            if bias is not None:
                bias.copy_(d.flatten())


def _squares(v: Tensor, d: Tensor, old: Coordinates, new: Coordinates) -> tuple[Tensor, Tensor]:
    """Mean squares of gradients in new coordinates, as if the entries of a gradient were independent."""
    right = (old.undoing().mT @ new.whitening.mT).square()
    if new.restoring is None or old.restoring is None:
        return between(None, v, right), d
    left = (new.restoring.mT @ torch.linalg.inv(old.restoring).mT).square()
    return between(left, v, right), torch.einsum("gpo,go->gp", left, d)

"""Internal covariate shift: how much the gradient of a layer changes because the layers before it move.

Formula: G_i is the gradient of the loss at W_1 ... W_k for the weights of layer i; G'_i the same at W'_1 ... W'_{i-1}, W_i ... W_k, where
the layers before i have taken their step and the others not: same batch, same random numbers, same running statistics at the start.
Reported are ||G_i - G'_i||, which is 0 for the first layer, and the cosine of the angle between them.
Reference: Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?", NeurIPS 2018, definition 2.1.
"""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from normsmith.analysis._still import Loss, Still, Weights, difference, gradients, holding, moved, norm
from normsmith.errors import OptionError
from normsmith.surgery._choice import Where
from normsmith.surgery._models import Forward


@dataclass(frozen=True)
class Shift:
    """The covariate shift of one layer."""

    difference: float  # ||G - G'||
    cosine: float  # of the angle between G and G'; NaN where one is zero
    gradient: float  # ||G||

    @property
    def relative(self) -> float:
        """||G - G'|| / ||G||; NaN where the gradient is zero."""
        return self.difference / self.gradient if self.gradient else math.nan


def covariate_shift(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    lr: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    where: Where | None = None,
    forward: Forward | None = None,
) -> dict[str, Shift]:
    """The internal covariate shift of every layer with trainable parameters of its own, by name, in the order of the forward.

    `loss(output, target)` is a number; the target is what follows the input in `batch`, or the batch itself if nothing does. The step is
    SGD's with `lr`, or the one `optimizer` would take next: a copy of it with its state takes it. `where(module, name)` says which layers
    are reported; all of them move. `forward(model, batch)` gives the output if it is not model(input).

    It costs a forward and a backward for each layer reported. The model stays in the mode it is in, training being the one meant, and is
    afterwards as it was.
    """
    if (lr is None) == (optimizer is None):
        raise OptionError("covariate_shift expects either lr= or optimizer=: got both or neither; lr=0.1 is a step of SGD")
    if lr is not None and not math.isfinite(lr):
        raise OptionError(f"covariate_shift expects lr as a finite number: got {lr!r}")
    with holding(model, "covariate_shift", forward) as still:
        layers, called = _layers(still), _Called(model)
        weights = still.weights()
        with called:
            before = gradients(still.loss(loss, batch, weights), weights)
        after = moved(weights, before, -lr) if lr is not None else _stepped(still, optimizer, weights, before)
        order = sorted(layers, key=called.position)
        wanted = [name for name in order if where is None or where(model.get_submodule(name), name)]
        if not wanted:
            raise OptionError(f"covariate_shift expects where() to select a layer: got none of {', '.join(map(repr, order))}")
        found, current = {}, dict(weights)
        for index, name in enumerate(order):
            own = {key: weights[key] for key in layers[name]}
            if name in wanted:
                old = {key: before[key] for key in own}
                found[name] = _compare(old, gradients(still.loss(loss, batch, current), own) if index else old)
            current |= {key: after[key] for key in own}
        return found


def _compare(one: Weights, other: Weights) -> Shift:
    lengths = norm(one) * norm(other)
    inner = sum((one[key].double() * other[key].double()).sum().item() for key in one)
    cosine = max(-1.0, min(1.0, inner / lengths.item())) if lengths else math.nan
    return Shift(difference(one, other).item(), cosine, norm(one).item())


def _layers(still: Still) -> dict[str, list[str]]:
    """The names of the trainable parameters that each module has itself; a parametrised layer has those of its parametrisation."""
    found: dict[str, list[str]] = {}
    for name in still.trainable:
        path = name.split(".")[:-1]
        owner = path[: path.index("parametrizations")] if "parametrizations" in path else path
        found.setdefault(".".join(owner), []).append(name)
    return found


class _Called:
    """In this block it is taken down when each module runs first."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = [name for name, _ in model.named_modules()]
        self._first: dict[str, int] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        self._hooks = [m.register_forward_pre_hook(partial(self._note, name)) for name, m in self._model.named_modules()]

    def _note(self, name: str, *_: object) -> None:
        self._first.setdefault(name, len(self._first))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def position(self, name: str) -> tuple[int, int]:
        """When a module ran; one whose parent uses its weights without calling it, when the parent did."""
        nearest = name
        while nearest and nearest not in self._first:
            nearest = nearest.rpartition(".")[0]
        return self._first.get(nearest, -1), self._names.index(name)


def _stepped(still: Still, optimizer: torch.optim.Optimizer | None, weights: Weights, slopes: Weights) -> Weights:
    """The weights after the next step of a copy of the optimizer."""
    assert optimizer is not None
    parameters = dict(still.model.named_parameters())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameters[name]) in held for name in weights):
        raise OptionError(
            "covariate_shift expects an optimizer of this model: got one that holds none of its trainable parameters; pass lr="
        )
    leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    memo: dict[int, Any] = {id(parameters[name]): leaf for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        leaf.grad = slopes[name].clone()
    twin = copy.deepcopy(optimizer, memo)
    try:
        twin.step()
    except (TypeError, AttributeError) as error:
        raise OptionError(
            f"covariate_shift expects an optimizer whose step() needs nothing but gradients: got {type(optimizer).__name__}; pass lr="
        ) from error
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}

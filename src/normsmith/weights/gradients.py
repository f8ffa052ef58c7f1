"""`normalize_gradients`: gradients normalized between the backward and the optimizer's step, whatever the optimizer."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from normsmith.errors import InputError, OptionError
from normsmith.methods._base import one_of
from normsmith.weights._rows import TRANSPOSED, Rows

How = Literal["layer", "centralize", "trust_ratio", "clip"]
OPTIONS = {"layer": ("eps",), "centralize": ("model",), "trust_ratio": ("trust",), "clip": ("max_norm",)}


class Hooked:
    """What `normalize_gradients` does to an optimizer's steps, until `remove()`."""

    def __init__(self, how: str, handles: list[Any]) -> None:
        self.how = how
        self._handles = handles

    def remove(self) -> None:
        """Leave gradients alone from now on."""
        while self._handles:
            self._handles.pop().remove()

    def __repr__(self) -> str:
        return f"<normalize_gradients {self.how!r}{'' if self._handles else ', removed'}>"


def normalize_gradients(
    optimizer: Optimizer,
    how: How,
    *,
    eps: float | None = None,
    max_norm: float | None = None,
    trust: float | None = None,
    model: nn.Module | None = None,
) -> Hooked:
    """Normalize the gradients of all parameters of `optimizer` before each of its steps; several of these act in the order of the calls.

    - `"layer"`: g / (||g|| + `eps`), 1e-8, each parameter by itself.
    - `"centralize"`: from each row of g its mean over the fan-in is taken (Yong et al., 2020), of parameters with two dimensions or
      more. For the rows of transposed convolutions pass `model`; without it they are those of dimension 0.
    - `"trust_ratio"`: the step of each parameter with two dimensions or more has a length in proportion to the parameter's own. With SGD
      this is LARS (You et al., 2017): g + weight_decay w is multiplied by `trust` (0.001) ||w|| / (||g|| + weight_decay ||w||), before
      the momentum. Adam and its like do not feel the length of g; with all but SGD it is LAMB (You et al., 2020): the step that the
      optimizer has taken is brought to the length lr · `trust` (1) · ||w||, weight decay in it, which should be decoupled, as in
      AdamW. A copy of the parameters is kept during the step. Where w or its step is zero nothing is changed.
    - `"clip"`: all gradients together are scaled to a norm of at most `max_norm` (1).

    With a GradScaler gradients are unscaled first; fused optimizers unscale in the step itself: call `scaler.unscale_(optimizer)`
    before. A closure computes the gradients after this has acted: `step(closure)` is refused.
    """
    check(how, eps=eps, max_norm=max_norm, trust=trust, model=model)
    if not isinstance(optimizer, Optimizer):
        raise OptionError(f"normalize_gradients expects a torch.optim.Optimizer: got {type(optimizer).__name__}")
    if how == "trust_ratio" and not isinstance(optimizer, SGD):
        return Hooked(how, _lamb(optimizer, 1.0 if trust is None else trust))
    work: dict[str, Callable[[], None]] = {
        "layer": lambda: _each(optimizer, lambda g: g.div_(g.norm() + (1e-8 if eps is None else eps))),
        "centralize": _Centralize(optimizer, model),
        "trust_ratio": lambda: _lars(optimizer, 1e-3 if trust is None else trust),
        "clip": lambda: _clip(optimizer, 1.0 if max_norm is None else max_norm),
    }
    return Hooked(how, [_before(optimizer, work[how])])


def check(how: str, **options: Any) -> None:
    """Raise unless gradients can be normalized so; an option that is None was not given."""
    one_of("normalize_gradients", "how", how, tuple(OPTIONS))
    owners = {option: owner for owner, own in OPTIONS.items() for option in own}
    for option, value in options.items():
        if value is None:
            continue
        if option not in OPTIONS[how]:
            raise OptionError(
                f"normalize_gradients expects {option} with {owners[option]!r} alone: got it with {how!r}; leave it out"
            )
        if option != "model" and (not isinstance(value, int | float) or not value > 0):
            raise OptionError(f"normalize_gradients expects {option} above zero: got {value!r}")


def _before(optimizer: Optimizer, work: Callable[[], None]) -> Any:
    def hook(_: Optimizer, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        if options.get("closure") is not None or any(a is not None and not isinstance(a, Optimizer) for a in args):
            raise OptionError(
                "normalize_gradients expects step() without a closure, which would compute the gradients afterwards: got one; run the "
                "backward before the step"
            )
        with torch.no_grad():
            work()

    return optimizer.register_step_pre_hook(hook)


def _with_gradient(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """Group, parameter and gradient of all that have one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    raise InputError(
                        f"normalize_gradients expects dense gradients: got a sparse one of shape {tuple(parameter.shape)}; build the "
                        "embedding with sparse=False"
                    )
                yield group, parameter, parameter.grad


def _each(optimizer: Optimizer, change: Callable[[Tensor], object]) -> None:
    for _, _, gradient in _with_gradient(optimizer):
        change(gradient)


def _clip(optimizer: Optimizer, limit: float) -> None:
    nn.utils.clip_grad_norm_([parameter for _, parameter, _ in _with_gradient(optimizer)], limit)


class _Centralize:
    """The mean of each row of a gradient taken from it."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._optimizer = optimizer
        layers = [] if model is None else [m for m in model.modules() if isinstance(m, TRANSPOSED)]
        self._rows = {p: Rows(m, tuple(m.weight.shape)) for m in layers for p in m.parameters() if p.shape == m.weight.shape}

    def __call__(self) -> None:
        for _, parameter, gradient in _with_gradient(self._optimizer):
            rows = self._rows.get(parameter)  # type: ignore[call-overload]
            if rows is not None:
                cut = rows.of(gradient)
                gradient.copy_(rows.back(cut - cut.mean(1, keepdim=True)))
            elif gradient.dim() > 1:
                gradient.sub_(gradient.mean(tuple(range(1, gradient.dim())), keepdim=True))


def _lars(optimizer: Optimizer, trust: float) -> None:
    for group, w, g in _with_gradient(optimizer):
        if w.dim() < 2:
            continue
        decay, sign = group["weight_decay"], -1 if group["maximize"] else 1
        size, against = w.norm(), g.norm() + decay * w.norm()
        ratio = torch.where((size > 0) & (against > 0), trust * size / against, 1.0)
        # The optimizer adds decay * w itself; what it is given is such that the sum is the scaled sum.
        g.mul_(ratio).add_(sign * decay * (ratio - 1) * w)


def _lamb(optimizer: Optimizer, trust: float) -> list[Any]:
    before: dict[Tensor, Tensor] = {}

    def keep() -> None:
        before.update({w: w.clone() for _, w, _ in _with_gradient(optimizer) if w.dim() > 1})

    def rescale(*_: object) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for w in group["params"]:
                    old = before.pop(w, None)
                    if old is None:
                        continue
                    step, size = w - old, old.norm()
                    length = step.norm()
                    ratio = torch.where((size > 0) & (length > 0), group["lr"] * trust * size / length, 1.0)
                    w.copy_(old + ratio * step)

    return [_before(optimizer, keep), optimizer.register_step_post_hook(rescale)]

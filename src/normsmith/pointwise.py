"""`pointwise`: an output that is no affine map of x, but still a function of each element and of its cell's numbers.

Plain torch would write a tensor of the size of x for every operation and keep most of them. Here the function runs on a few samples at
a time, whose temporaries stay in the cache, and the backward runs it again: beside y and dx, nothing of the size of x is written, and
nothing but x is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from normsmith.kernels.choose import backend_for
from normsmith.kernels.reference import widened
from normsmith.normalize import refuse_batched
from normsmith.surroundings import must_stay_plain, without_autocast

Function = Callable[..., Tensor]
BLOCK = 1 << 18  # elements at a time; measured on 2 cores, where 2^17 to 2^19 do alike


def pointwise(x: Tensor, function: Function, *tensors: Tensor | None) -> Tensor:
    """`function(x, *tensors)`, element by element, in the type of x; each tensor is one number, (C,), (1, C) or (N, C)."""
    step = _Pass(function, tuple(t is not None for t in tensors))
    given = [_beside(x, t) for t in tensors if t is not None]
    with without_autocast(x):
        if must_stay_plain((x, *given)):
            return step.apply(x, given)
        backend_for(x)  # an error where a forced backend cannot take x, though every device can do this
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given)):
            return _Pointwise.apply(step, x, *given)  # type: ignore[no-any-return,no-untyped-call]
        return step.forward(x, given)


def _beside(x: Tensor, t: Tensor) -> Tensor:
    """A statistic in a shape that broadcasts with x."""
    return t if t.dim() == 0 else t.reshape(t.shape[0] if t.dim() == 2 else 1, x.shape[1], *[1] * (x.dim() - 2))


class _Pass:
    """The function, and which of its tensors there are."""

    def __init__(self, function: Function, present: tuple[bool, ...]) -> None:
        self.function = function
        self.present = present

    def apply(self, x: Tensor, given: Sequence[Tensor]) -> Tensor:
        """The function as ordinary differentiable operations."""
        rest = iter(given)
        return self.function(widened(x), *(next(rest) if here else None for here in self.present)).to(x.dtype)

    def forward(self, x: Tensor, given: Sequence[Tensor]) -> Tensor:
        """The output, block by block."""
        y = torch.empty_like(x)
        with torch.no_grad():
            for block in _blocks(x):
                y[block] = self.apply(x[block], [_of(t, block) for t in given])
        return y

    def backward(self, dy: Tensor, x: Tensor, given: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x and of the tensors, block by block."""
        every = (x, *given)
        totals = [torch.empty_like(x) if t is x else torch.zeros_like(t) for t in every]
        for block in _blocks(x):
            leaves = [_of(t, block).detach().requires_grad_(need) for t, need in zip(every, needed, strict=True)]
            with torch.enable_grad():
                y = self.apply(leaves[0], leaves[1:])
            wanted = [i for i, need in enumerate(needed) if need]
            found = torch.autograd.grad(y, [leaves[i] for i in wanted], dy[block], allow_unused=True, materialize_grads=True)
            for i, grad in zip(wanted, found, strict=True):
                if i == 0:
                    totals[0][block] = grad
                else:
                    _of(totals[i], block).add_(grad)
        return [total if need else None for total, need in zip(totals, needed, strict=True)]


def _blocks(x: Tensor) -> Iterator[slice]:
    """Samples in blocks that fit the cache; all of them where there is none to fit."""
    samples = x.shape[0]
    size = max(1, BLOCK * samples // max(x.numel(), 1)) if x.device.type == "cpu" else max(samples, 1)
    return (slice(start, start + size) for start in range(0, samples, size))


def _of(t: Tensor, block: slice) -> Tensor:
    """The samples of a block; a tensor that all samples share as it is."""
    return t[block] if t.dim() > 0 and t.shape[0] > 1 else t


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Pass, x: Tensor, *given: Tensor) -> Tensor:
        ctx.step = step
        ctx.save_for_backward(x, *given)
        return step.forward(x, given)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        x, *given = ctx.saved_tensors
        refuse_batched(grads)
        with without_autocast(x):
            if not torch.is_grad_enabled():
                return None, *ctx.step.backward(grads[0], x, given, needed)
            # The gradient will be differentiated itself. Views, so that a tensor computed from x does not count x twice.
            x, *given = (t.view_as(t) for t in (x, *given))
            y = ctx.step.apply(x, given)
            inputs = [t for t, need in zip((x, *given), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, inputs, grads[0], create_graph=True, allow_unused=True))
            return None, *(next(found) if need else None for need in needed)

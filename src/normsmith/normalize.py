"""THE function: cells -> moments -> mix -> affine, as one autograd node.

A method is a pure function `mix(cells, batch, *tensors) -> (center, scale, bias)`; the output is (x - center) * scale + bias. (It may
return a `Standardized` instead, which stands for such a triple.)
`cells` holds the moments of every cell, (N, C); `batch` those pooled over the samples, (1, C); a method names in `sees` which of the
two it wants, and gets None for the other. What `mix` returns is spread to (N, C), or stays (1, C) if all samples share it; center and
bias may be plain numbers. Options are bound beforehand (functools.partial); every tensor is an argument, because one that `mix` finds
elsewhere would get no gradient: that is an error.

The node reads x twice forward (moments, affine) and twice backward (sums, gradient), and keeps x and a few numbers per cell. The
backward runs `mix` again on those numbers where it must be differentiated, so there is no graph to keep. Per cell,

    d bias = sum dy,  d scale = sum dy (x - center),  d center = -scale sum dy          (the sums)
    d mean, d var = the derivative of mix, by autograd                                  (small)
    d x = scale dy + d mean / count + 2 d var (x - mean) / count                        (the gradient)

Where somebody must see plain operations (`surroundings.py`), or differentiates the gradient, the same steps run as ordinary torch.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from normsmith.affine import Standardized, Triple, pull_triple, through
from normsmith.cells import cut, statistics_of
from normsmith.errors import BackendError, CaptureError
from normsmith.kernels import Backend, Bounds, reference
from normsmith.kernels.choose import backend_for
from normsmith.moments import Moments
from normsmith.surroundings import is_batched, must_stay_plain

Sees = Literal["cells", "batch", "both", "nothing"]
Mix = Callable[..., Triple | Standardized]
Line = tuple[Tensor, Tensor, Tensor]  # slope * (x - pivot) + offset


@dataclass(frozen=True, eq=False)
class Normalized:
    """The output, and the moments it was made from, cut from the graph: for running statistics."""

    y: Tensor
    cells: Moments | None
    batch: Moments | None


def normalize(x: Tensor, mix: Mix, *tensors: Tensor | None, sees: Sees, within: Bounds | None = None) -> Normalized:
    """Normalize `x` (N, C, *spatial) as `mix` says; moments count only elements strictly between the bounds of `within`."""
    given = tuple(t for t in tensors if t is not None)
    step = _Pass(mix, tuple(t is not None for t in tensors), sees, within)
    if must_stay_plain((x, *given)):
        return step.plain(x, given)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given)):
        y = _Node.apply(step, x, *given)  # type: ignore[no-untyped-call]
    else:
        y = step.forward(backend_for(x), x, given)
    return Normalized(y, step.cells, step.batch)


class _Pass:
    """One forward of one tensor, and what its backward needs besides x and the tensors of the mix: O(N*C) numbers."""

    backend: Backend = reference
    cells: Moments | None = None
    batch: Moments | None = None
    center: Tensor
    scale: Tensor
    given: Sequence[Tensor]  # the tensors of the mix, detached
    closed: Standardized | None = None  # what the mix made of them, if its derivative needs no autograd

    def __init__(self, mix: Mix, present: tuple[bool, ...], sees: Sees, within: Bounds | None) -> None:
        self.mix = mix
        self.present = present
        self.sees = sees
        self.within = within

    def plain(self, x: Tensor, tensors: Sequence[Tensor]) -> Normalized:
        """The whole forward as ordinary differentiable operations; changes nothing here, a backward may still need what is here."""
        with _without_autocast(x):
            view = cut(x)
            cells, batch = self.moments(reference, view)
            triple = _triple(self.mixed(cells, batch, tensors))
            y = reference.cell_affine(view, *_spread(view, triple)).view(x.shape)
        return Normalized(y, cells and cells.detach(), batch and batch.detach())

    def forward(self, backend: Backend, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The forward by the four operations; what autograd would record of it is recorded by the node instead."""
        self.backend = backend
        with _without_autocast(x), torch.no_grad():
            view = cut(x)
            self.cells, self.batch = self.moments(backend, view)
            with torch.enable_grad():  # on detached tensors only: whatever requires a gradient here came in by another door
                self.given = [t.detach() for t in tensors]
                found = self.mixed(self.cells, self.batch, self.given)
                triple = _triple(found)
            if any(isinstance(value, Tensor) and value.requires_grad for value in triple):
                raise CaptureError(
                    "a mix expects every tensor it uses as an argument: got an output that requires a gradient although no "
                    f"argument does; pass the captured parameter of {self.mix} through normalize(x, mix, *tensors)"
                )
            if isinstance(found, Standardized) and found.is_closed(self.given):
                self.closed = found
            self.center, self.scale, bias = _spread(view, triple)
            return backend.cell_affine(view, self.center, self.scale, bias).view(x.shape)

    def moments(self, backend: Backend, view: Tensor) -> tuple[Moments | None, Moments | None]:
        """The moments the mix asked to see: (cells, batch)."""
        if self.sees == "nothing":
            return None, None
        if self.sees == "batch":
            return None, backend.cell_moments(view, self.within, shared=True)
        cells = backend.cell_moments(view, self.within)
        return cells, cells.pool(0) if self.sees == "both" else None

    def mixed(self, cells: Moments | None, batch: Moments | None, tensors: Sequence[Tensor]) -> Triple | Standardized:
        """What the mix gives for these values of its arguments."""
        rest = iter(tensors)
        return self.mix(cells, batch, *(next(rest) if here else None for here in self.present))

    def backward(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x and of the tensors: sums over x, the derivative of the mix, one pass that writes dx."""
        view, grad = cut(x), cut(dy)
        total, product = self.backend.cell_grad_sums(grad, view, self.center, shared=self.scale.shape[0] == 1)
        if self.closed is not None:
            moments = self.closed.moments
            (_, d_mean), (_, d_var), *rest = self.closed.pull(self.scale, total, product)
            lines = [_line(moments, moments.regroup(d_mean), moments.regroup(d_var))]
            grads = through(rest, self.given)
        else:
            lines, grads = self.by_autograd(tensors, needed, total, product)
        return [self.grad_input(grad, view, lines).view(x.shape) if needed[0] else None, *grads]

    def by_autograd(
        self, tensors: Sequence[Tensor], needed: Sequence[bool], total: Tensor, product: Tensor
    ) -> tuple[list[Line], list[Tensor | None]]:
        """The gradients through the cells and the batch, and those of the tensors, by running the mix once more."""
        given = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed[1:], strict=True)]
        cells, batch = (m and m.detach() for m in (self.cells, self.batch))
        sources = [m for m in (cells, batch) if m is not None]
        statistics = [t.requires_grad_(needed[0]) for m in sources for t in (m.mean, m.var)]
        with torch.enable_grad():
            found = self.mixed(cells, batch, given)
        pull = found.pull if isinstance(found, Standardized) else partial(pull_triple, found)
        grads = through(pull(self.scale, total, product), [*statistics, *given])
        lines = [_line(m, grads[2 * i], grads[2 * i + 1]) for i, m in enumerate(sources)]
        return lines, grads[len(statistics) :]

    def grad_input(self, dy: Tensor, x: Tensor, lines: Sequence[Line]) -> Tensor:
        """dx: that of the affine map, and the gradients through the moments, which add up to one line in x."""
        if not lines:
            zero = torch.zeros_like(self.scale)
            return self.backend.cell_affine(dy, zero, self.scale, zero)
        slope, pivot, offset = lines[0]
        for other_slope, other_pivot, other_offset in lines[1:]:
            offset = offset + other_offset + other_slope * (pivot - other_pivot)
            slope = slope + other_slope
        return self.backend.cell_grad_input(dy, x, self.scale, slope, pivot, offset, self.within)


def _triple(found: Triple | Standardized) -> Triple:
    return found.triple() if isinstance(found, Standardized) else found


def _spread(view: Tensor, triple: Triple) -> tuple[Tensor, Tensor, Tensor]:
    """Center, scale and bias as tensors of one shape, (N, C), or (1, C) if all samples share them."""
    sizes = [value.shape for value in triple if isinstance(value, Tensor)]
    shape = statistics_of(view, shared=all(len(size) < 2 or size[0] == 1 for size in sizes))
    dtype = reference.statistics_type(view)

    def spread(value: Tensor | float) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full(shape, value, dtype=dtype, device=view.device)
        return value if value.shape == shape and value.dtype == dtype else value.to(dtype).expand(shape)

    return spread(triple[0]), spread(triple[1]), spread(triple[2])


def _line(moments: Moments, d_mean: Tensor | None, d_var: Tensor | None) -> Line:
    """The gradient through one mean and one variance as slope * (x - pivot) + offset."""
    count = moments.count.clamp_min(1) if isinstance(moments.count, Tensor) else max(moments.count, 1)
    slope = torch.zeros_like(moments.var) if d_var is None else d_var * (2 / count)
    return slope, moments.mean.detach(), torch.zeros_like(moments.mean) if d_mean is None else d_mean / count


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Statistics and mixes are computed in the type they are in, autocast or not."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Pass, x: Tensor, *tensors: Tensor) -> Tensor:
        ctx.step = step
        ctx.save_for_backward(x, *tensors)
        return step.forward(backend_for(x), x, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        x, *tensors = ctx.saved_tensors
        if is_batched(grads[0]):
            raise BackendError(
                "a backward of normsmith expects one gradient at a time: got many, from is_grads_batched=True or vmap; "
                'loop over them, take torch.func.vjp, or run the forward under backend("torch") if torch has the operator'
            )
        with _without_autocast(x):
            if not torch.is_grad_enabled():
                return None, *ctx.step.backward(grads[0], x, tensors, needed)
            # The gradient will be differentiated itself. Views, so that a tensor computed from x does not count x twice.
            x, *tensors = (t.view_as(t) for t in (x, *tensors))
            y = ctx.step.plain(x, tensors).y
            inputs = [t for t, need in zip((x, *tensors), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, inputs, grads[0], create_graph=True, allow_unused=True))
            return None, *(next(found) if need else None for need in needed)

"""THE function: cells -> moments -> mix -> affine, as one autograd node.

A method is a pure function `mix(cells, batch, *tensors) -> (center, scale, bias)`; the output is (x - center) * scale + bias. (It may
return a `Standardized` instead, which stands for such a triple.)
`cells` holds the moments of every cell, (N, C); `batch` those pooled over the samples, (1, C); a method names in `sees` which of the
two it wants, and gets None for the other. What `mix` returns is spread to (N, C), or stays (1, C) if all samples share it; center and
bias may be plain numbers. Options are bound beforehand (functools.partial); every tensor is an argument, because one that `mix` finds
elsewhere would get no gradient: that is an error.

The node reads x twice forward (moments, affine) and twice backward (sums, gradient), or once where a backend can (`at_once`), and keeps x
and a few numbers per cell. The
backward runs `mix` again on those numbers where it must be differentiated, so there is no graph to keep. Per cell,

    d bias = sum dy,  d scale = sum dy (x - center),  d center = -scale sum dy          (the sums)
    d mean, d var = the derivative of mix, by autograd                                  (small)
    d x = scale dy + d mean / count + 2 d var (x - mean) / count                        (the gradient)

An activation (`act`) is part of the affine map's pass, and of the two backward, which multiply dy with its derivative at the y they
make again of x.

`measure` is the first half alone: the moments, differentiable, for methods whose output is not affine in x.

Where somebody must see plain operations (`surroundings.py`), or differentiates the gradient, the same steps run as ordinary torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from normsmith.activation import Activation
from normsmith.affine import Standardized, Triple, pull_triple, through
from normsmith.arithmetic import AtOnce
from normsmith.cells import cut, statistics_of
from normsmith.derivatives import fit
from normsmith.errors import BackendError, CaptureError
from normsmith.kernels import Backend, Bend, Bent, Bounds, reference
from normsmith.kernels.choose import backend_for
from normsmith.moments import Moments, Pooled, Pull
from normsmith.plan import Plan, Sees
from normsmith.surroundings import is_batched, must_stay_plain, without_autocast
from normsmith.world import World

Mix = Callable[..., Triple | Standardized]
Affine = tuple[Tensor, Tensor, Tensor]  # center, scale, bias, of one shape


@dataclass(frozen=True, eq=False)
class Normalized:
    """The output, and the moments it was made from, cut from the graph: for running statistics."""

    y: Tensor
    cells: Moments | None
    batch: Moments | None


def normalize(
    x: Tensor,
    mix: Mix,
    *tensors: Tensor | None,
    sees: Sees,
    within: Bounds | None = None,
    mask: Tensor | None = None,
    world: World | None = None,
    floor: Tensor | None = None,
    act: Activation | None = None,
) -> Normalized:
    """Normalize `x` (N, C, *spatial) as `mix` says; moments count only elements strictly between the bounds of `within`.

    `mask` broadcasts to x; `floor` is a statistic, (C,), (1, C) or (N, C), which the output is raised to, unless it goes through `act`.
    """
    step = _Pass(Plan(sees, within, mask, world), mix, tuple(t is not None for t in tensors), act)
    given = tuple(t for t in (*tensors, floor) if t is not None)
    result = run(step, step.plan.masked(x), given)
    if step.whole is not None:
        step.cells = step.batch = None  # which, not taken, would keep x beside what autograd saves of it
    return result if mask is None else replace(result, y=torch.where(mask, result.y, 0))


class Step(Protocol):
    """A forward of one tensor that has a backward of its own; `plain` is the same as ordinary differentiable operations."""

    @property
    def cells(self) -> Moments | None:
        """The moments that the last forward was made from, of each sample."""

    @property
    def batch(self) -> Moments | None:
        """Those of the batch."""

    def plain(self, x: Tensor, tensors: Sequence[Tensor]) -> Normalized:
        """The whole forward."""

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The output, and in `cells` and `batch` what it was made from."""

    def backward(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor | None]:
        """The gradients of x and of the tensors."""


def run(step: Step, x: Tensor, given: Sequence[Tensor]) -> Normalized:
    """The step as one node of the graph, or plainly where somebody must see its operations."""
    if must_stay_plain((x, *given)):
        return step.plain(x, given)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given))
    y = _Node.apply(step, x, *given) if recorded else step.forward(x, given)  # type: ignore[no-untyped-call]
    return Normalized(y, step.cells, step.batch)


def refuse_captured(found: Sequence[Tensor], mix: Callable[..., object], to: str = "normalize") -> None:
    """Raise if what was computed from detached arguments requires a gradient: it came in by another door."""
    if any(value.requires_grad for value in found):
        raise CaptureError(
            "a mix expects every tensor it uses as an argument: got an output that requires a gradient although no "
            f"argument does; pass the captured parameter of {mix} through {to}(x, mix, *tensors)"
        )


class _Pass:
    """One forward of one tensor, and what its backward needs besides x and the tensors of the mix: O(N*C) numbers."""

    backend: Backend = reference
    cells: Moments | None = None
    batch: Moments | None = None
    affine: Affine
    bend: Bend | None = None
    given: Sequence[Tensor]  # the tensors of the mix, detached
    whole: AtOnce | None = None  # output and backward of a backend that has both in one pass
    closed: Standardized | None = None  # what the mix made of them, if its derivative needs no autograd

    def __init__(self, plan: Plan, mix: Mix, present: tuple[bool, ...], act: Activation | None) -> None:
        self.plan = plan
        self.mix = mix
        self.present = present
        self.act = act

    def plain(self, x: Tensor, tensors: Sequence[Tensor]) -> Normalized:
        """The whole forward as ordinary differentiable operations; changes nothing here, a backward may still need what is here."""
        with without_autocast(x):
            view = cut(x)
            cells, batch = self.plan.moments(reference, view)
            affine = _spread(view, self.mixed(cells, batch, tensors))
            y = reference.cell_affine(self.plan.filled(view), *affine, self.bent(view, tensors)).view_as(x)
        return Normalized(y, cells and cells.detach(), batch and batch.detach())

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The forward by the four operations; what autograd would record of it is recorded by the node instead."""
        self.backend = backend = backend_for(x)
        with without_autocast(x):
            view = cut(x)
            self.cells, self.batch = self.plan.moments(backend, view, later=True)
            with torch.enable_grad():  # on detached tensors only: whatever requires a gradient here came in by another door
                self.given = [t.detach() for t in tensors]
                found = self.mixed(self.cells, self.batch, self.given)
                self.bend = self.bent(view, self.given)
                if isinstance(found, Standardized) and found.is_closed(self.given):
                    self.closed = found
                    self.whole = found.at_once(self.bend)
                    if self.whole is not None:
                        y = self.whole.y
                        del self.whole.y  # what is left of it is kept for the backward
                        return y.view_as(x)
                self.affine = _spread(view, found)
            refuse_captured(self.affine, self.mix)
            return backend.cell_affine(view, *self.affine, self.bend).view_as(x)

    def bent(self, view: Tensor, tensors: Sequence[Tensor]) -> Bend | None:
        """What bends the affine map: the activation, or a floor, which is the one tensor more than the mix has."""
        if self.act is not None:
            return Bend(self.act.name, _spread_to(view, self.act.slope, statistics_of(view, shared=True)))
        return Bend("floor", _spread_one(view, tensors[-1])) if len(tensors) > sum(self.present) else None

    def mixed(self, cells: Moments | None, batch: Moments | None, tensors: Sequence[Tensor]) -> Triple | Standardized:
        """What the mix gives for these values of its arguments."""
        rest = iter(tensors)
        return self.mix(cells, batch, *(next(rest) if here else None for here in self.present))

    def backward(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x and of the tensors: sums over x, the derivative of the mix, one pass that writes dx."""
        view, grad = cut(x), cut(dy)
        if self.whole is not None:
            d_x, grads = self.backward_of_whole(self.whole, grad, view)
            return [d_x.view_as(x), *grads]
        bent = None if self.bend is None else Bent(*self.affine, self.bend)
        if bent is not None:  # there is no dy where the mask is false, but no y either
            view = self.plan.filled(view)
        everywhere = self.plan.everywhere(view) if bent is None else None
        scale = self.affine[1]
        shared = scale.shape[0] == 1 and (self.bend is None or self.bend.level.shape[0] == 1)
        total, product, below = self.backend.cell_grad_sums(grad, view, self.affine[0], everywhere, shared=shared, bent=bent)
        pull = Pull(by=self.backend)
        if self.closed is not None:
            self.closed.pull(scale, total, product, pull)
            grads = through(pull.tensors, self.given)
        else:
            grads = self.by_autograd(tensors, needed, total, product, pull)
        if below is not None:
            grads[-1] = fit(below, tensors[-1])
        if not needed[0]:
            return [None, *grads]
        line, within = self.plan.line(pull), self.plan.within or self.plan.everywhere(view)
        if line is None:
            nothing = torch.zeros_like(scale)
            if bent is None:
                return [self.backend.cell_affine(grad, nothing, scale, nothing).view_as(x), *grads]
            line, within = (nothing, nothing, nothing), (nothing, nothing)  # bounds that nothing lies between
        return [self.backend.cell_grad_input(grad, view, scale, *line, within, bent).view_as(x), *grads]

    def backward_of_whole(self, whole: AtOnce, dy: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The same where it is one pass."""
        assert self.closed is not None
        d_x, d_weight, d_bias, *found = whole.backward(dy, x)
        own = ((self.closed.weight, d_weight), (self.closed.bias, d_bias))
        grads = through([*found, *((t, d) for t, d in own if t is not None and d is not None)], self.given)
        for t, d in found:
            if self.bend is not None and t is self.bend.level:  # which is the floor in another shape and type
                grads[-1] = fit(d, self.given[-1])
        return d_x, grads

    def by_autograd(
        self, tensors: Sequence[Tensor], needed: Sequence[bool], total: Tensor, product: Tensor, to: Pull
    ) -> list[Tensor | None]:
        """The gradients of the tensors, and to `to` those of the cells and the batch, by running the mix once more."""
        given = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed[1:], strict=True)]
        sources = [m for m in (self.cells, self.batch) if m is not None]
        copies = {id(m): m.detach() for m in sources}
        statistics = [t.requires_grad_(needed[0]) for m in copies.values() for t in (m.mean, m.var)]
        with torch.enable_grad():
            found = self.mixed(copies.get(id(self.cells)), copies.get(id(self.batch)), given)
        pull = Pull(by=self.backend)
        (found.pull if isinstance(found, Standardized) else partial(pull_triple, found))(self.affine[1], total, product, pull)
        grads = through(pull.tensors, [*statistics, *given])
        for i, m in enumerate(sources):
            d_mean, d_var = grads[2 * i], grads[2 * i + 1]
            assert isinstance(m, Pooled)
            zero = torch.zeros_like(m.mean)
            to.pooled.append((m, zero if d_mean is None else d_mean, zero if d_var is None else d_var))
        return grads[len(statistics) :]


def _spread(view: Tensor, found: Triple | Standardized) -> Affine:
    """Center, scale and bias as tensors of one shape, (N, C), or (1, C) if all samples share them."""
    triple, shared = found.triple() if isinstance(found, Standardized) else found, True
    for value in triple:
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[0] != 1:
            shared = False
    shape = statistics_of(view, shared)
    return _spread_to(view, triple[0], shape), _spread_to(view, triple[1], shape), _spread_to(view, triple[2], shape)


def _spread_one(view: Tensor, value: Tensor) -> Tensor:
    return _spread_to(view, value, statistics_of(view, shared=value.dim() < 2 or value.shape[0] == 1))


def _spread_to(view: Tensor, value: Tensor | float, shape: tuple[int, int]) -> Tensor:
    dtype = reference.statistics_type(view)
    if not isinstance(value, Tensor):
        return torch.full(shape, value, dtype=dtype, device=view.device)
    if value.dtype != dtype:
        value = value.to(dtype)
    # The rank first: comparing (C,) with (N, C) would have an exported graph depend on whether N is C.
    return value if value.dim() == 2 and value.shape == shape else value.expand(shape)


def refuse_batched(grads: Sequence[Tensor]) -> None:
    """Raise for gradients that are really many: they have no memory of their own to read."""
    if any(is_batched(grad) for grad in grads):
        raise BackendError(
            "a backward of normsmith expects one gradient at a time: got many, from is_grads_batched=True or vmap; "
            'loop over them, take torch.func.vjp, or run the forward under backend("torch") if torch has the operator'
        )


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, x: Tensor, *tensors: Tensor) -> Tensor:
        ctx.step = step
        ctx.save_for_backward(x, *tensors)
        # Without `data` it is a view of its cut form, and torch refuses to let nn.ReLU(inplace=True) write to a view that a Function made.
        return step.forward(x, tensors).data

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        x, *tensors = ctx.saved_tensors
        refuse_batched(grads)
        with without_autocast(x):
            if not torch.is_grad_enabled():
                return None, *ctx.step.backward(grads[0], x, tensors, needed)
            # The gradient will be differentiated itself. Views, so that a tensor computed from x does not count x twice.
            x, *tensors = (t.view_as(t) for t in (x, *tensors))
            y = ctx.step.plain(x, tensors).y
            inputs = [t for t, need in zip((x, *tensors), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, inputs, grads[0], create_graph=True, allow_unused=True))
            return None, *(next(found) if need else None for need in needed)

"""`measure`: the moments of x as differentiable tensors, for methods whose output is not affine in x, and for bounds.

Forward one pass over x; backward one that writes dx, a line in x for each of cells and batch.
"""

from typing import Any

import torch
from torch import Tensor

from normsmith.cells import cut
from normsmith.kernels import Backend, Bounds, reference
from normsmith.kernels.choose import backend_for
from normsmith.moments import Moments, Pull
from normsmith.normalize import refuse_batched
from normsmith.plan import Plan, Sees
from normsmith.surroundings import must_stay_plain, without_autocast
from normsmith.world import World


def measure(
    x: Tensor, *, sees: Sees, within: Bounds | None = None, mask: Tensor | None = None, world: World | None = None
) -> tuple[Moments | None, Moments | None]:
    """The moments of cells, (N, C), and of the batch, (1, C), as `sees` says; the arguments are those of `normalize`."""
    plan = Plan(sees, within, mask, world)
    x = plan.masked(x)
    with without_autocast(x):
        if must_stay_plain((x,)):
            return plan.moments(reference, cut(x))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return plan.moments(backend_for(x), cut(x))
        step = _Pass(plan, backend_for(x))
        values = iter(_Measure.apply(step, x))  # type: ignore[no-untyped-call]
        cells, batch = (m and Moments(next(values), next(values), m.count) for m in step.found)
        return cells, batch


class _Pass:
    """What a backward needs besides x."""

    found: tuple[Moments | None, Moments | None]

    def __init__(self, plan: Plan, backend: Backend) -> None:
        self.plan = plan
        self.backend = backend


class _Measure(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Pass, x: Tensor) -> Any:
        ctx.step = step
        ctx.save_for_backward(x)
        step.found = step.plan.moments(step.backend, cut(x))
        return tuple(t.clone() for m in step.found if m is not None for t in (m.mean, m.var))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        refuse_batched(grads)
        step, (x,) = ctx.step, ctx.saved_tensors
        with without_autocast(x):
            if torch.is_grad_enabled():  # the gradient will be differentiated itself
                x = x.view_as(x)
                plain = [t for m in step.plan.moments(reference, cut(x)) if m is not None for t in (m.mean, m.var)]
                return None, torch.autograd.grad(plain, x, grads, create_graph=True)[0]
            pull, rest = Pull(by=step.backend), iter(grads)
            for m in step.found:
                if m is not None:
                    pull.pooled.append((m, next(rest), next(rest)))
            line, view = step.plan.line(pull), cut(x)
            assert line is not None
            slope, pivot, offset = line
            within = step.plan.within or step.plan.everywhere(view)
            if within is None:
                return None, step.backend.cell_affine(view, pivot, slope, offset).view(x.shape)
            nothing = torch.zeros_like(view)
            return None, step.backend.cell_grad_input(nothing, view, torch.zeros_like(slope), *line, within).view(x.shape)

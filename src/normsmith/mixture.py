"""`normalize_mixture`: K weighted moments in, K affine maps out, blended by every element's shares; one autograd node.

    density(*tensors) -> Density                        a mixture for every channel, or a joint one of all; its shares r_k of an element
    mix(components, *tensors) -> (center, scale, bias)  (K, C), (K, C) and (C,), from the moments weighted by r_k, (K, C)
    y = sum_k r_k (x - center_k) scale_k + bias

Both are pure, as a mix of `normalize` is: every tensor is an argument. The node reads x twice forward and twice backward, and computes the
shares of separate mixtures anew each time, so that nothing K times as large as x is ever written. With D_k what the loss gains per share,

    D_k = dy scale_k (x - center_k) + d mean_k (x - mean_k) / R_k + d var_k ((x - mean_k)² - var_k) / R_k,     R_k = sum r_k
    d logit_k = r_k (D_k - sum_j r_j D_j)                                      to the density, and through it to x
    d x = sum_k r_k (dy scale_k + d mean_k / R_k + 2 d var_k (x - mean_k) / R_k) + what comes through the logits

Not `through` the shares, they are constants for the gradient. Through those of a joint mixture, plain operations do the work.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from normsmith import affine
from normsmith.affine import Triple
from normsmith.cells import cut
from normsmith.kernels import mixtures_reference as reference
from normsmith.kernels.choose import mixtures_for
from normsmith.kernels.mixtures import By, Density, Draw, MixtureBackend, fraction
from normsmith.kernels.reference import statistics_type
from normsmith.moments import Moments, fit
from normsmith.normalize import Normalized, refuse_captured, run
from normsmith.surroundings import must_stay_plain, without_autocast
from normsmith.world import World

MakeDensity = Callable[..., Density]
MixComponents = Callable[..., Triple]


def normalize_mixture(
    x: Tensor,
    density: MakeDensity,
    mix: MixComponents,
    *tensors: Tensor | None,
    measures: bool = True,
    through: bool = True,
    mask: Tensor | None = None,
    world: World | None = None,
) -> Normalized:
    """Normalize `x` (N, C, *spatial) by a mixture; `batch` of the result are the moments of the components, (K, C).

    Where it does not measure, `mix` gets None for them.
    """
    step = _Pass(density, mix, tuple(t is not None for t in tensors), measures, through, mask, world)
    given = tuple(t for t in tensors if t is not None)
    hidden = x if mask is None else torch.where(mask, x, math.nan)
    result = run(step, hidden, given)
    return result if mask is None else replace(result, y=torch.where(mask, result.y, 0))


@torch.no_grad()
def weigh(x: Tensor, density: Density, *, mask: Tensor | None = None, world: World | None = None) -> Moments:
    """The weighted moments of the components, (K, C), without gradient: a step of expectation and maximisation."""
    with without_autocast(x):
        hidden = x if mask is None else torch.where(mask, x, math.nan)
        view = cut(hidden)
        backend = reference if must_stay_plain((x,)) else mixtures_for(x)
        found = _opened(backend, view, density, True, mask, world)[1]
        assert found is not None
        return found


def log_evidence(points: Tensor, density: Density) -> Tensor:
    """The log of a density at points, (P, C), up to a constant: (P, C), or (P, 1) of a joint one."""
    return reference.evidence(points.unsqueeze(2), density).squeeze(2)


def _opened(
    backend: MixtureBackend, view: Tensor, density: Density, measures: bool, mask: Tensor | None, world: World | None
) -> tuple[By, Moments | None]:
    """What tells the shares of an element, and the moments weighted by them where these are wanted."""
    if not density.joint:
        return density, _measured(backend, view, density, mask, world) if measures else None
    by, found = backend.shares(view, density, measures=measures, masked=mask is not None)
    return by, None if found is None else _of_all(found, view, mask, world)


def _measured(backend: MixtureBackend, view: Tensor, by: By, mask: Tensor | None, world: World | None) -> Moments:
    """The weighted moments."""
    return _of_all(backend.weighted_moments(view, by, masked=mask is not None), view, mask, world)


def _of_all(found: Moments, view: Tensor, mask: Tensor | None, world: World | None) -> Moments:
    """Those of all ranks' elements; NaN where there was one that the mask does not leave out."""
    if mask is not None:
        places = _cut_mask(mask, view).sum((0, 2))
        lost = found.counts().sum(0) < places - 0.5
        found = Moments(found.mean.masked_fill(lost, math.nan), found.var.masked_fill(lost, math.nan), found.count)
    if world is None:
        return found
    shape = found.mean.shape
    return world.merge(found.map(lambda t: t.reshape(1, -1))).map(lambda t: t.view(shape))


def _cut_mask(mask: Tensor, view: Tensor) -> Tensor:
    return mask.reshape(*mask.shape[:2], math.prod(mask.shape[2:])).expand(view.shape)


class _Pass:
    """One forward of one tensor, and what its backward needs besides x and the tensors of the mix."""

    cells: Moments | None = None
    batch: Moments | None = None  # of the components
    backend: MixtureBackend
    by: By
    affine: tuple[Tensor, Tensor, Tensor]

    def __init__(
        self,
        density: MakeDensity,
        mix: MixComponents,
        present: tuple[bool, ...],
        measures: bool,
        through: bool,
        mask: Tensor | None,
        world: World | None,
    ) -> None:
        self.density, self.mix, self.present = density, mix, present
        self.measures, self.through, self.mask, self.world = measures, through, mask, world

    def plain(self, x: Tensor, tensors: Sequence[Tensor]) -> Normalized:
        """The whole forward as ordinary differentiable operations."""
        with without_autocast(x):
            view, given = cut(x), self._spread(tensors)
            density = self.density(*given)
            if not self.through:
                density = density.detach()
            by: By = density
            if density.joint or not self.through:
                by = reference.weights(view if self.through else view.detach(), density, masked=self.mask is not None)
            components = _measured(reference, view, by, self.mask, self.world) if self.measures else None
            affine = self._mapped(view, components, given)
            filled = view if self.mask is None else torch.where(_cut_mask(self.mask, view), view, 0)
            y = reference.weighted_affine(filled, by, *affine).view(x.shape)
        return Normalized(y, None, components and components.detach())

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The forward by the operations of a backend; what autograd would record of it is recorded by the node instead."""
        self.backend = mixtures_for(x)
        with without_autocast(x), torch.no_grad():
            view = cut(x)
            with torch.enable_grad():  # on detached tensors only
                given = self._spread([t.detach() for t in tensors])
                density = self.density(*given)
                refuse_captured(density.tensors(), self.density)
            self.by, self.batch = _opened(self.backend, view, density, self.measures, self.mask, self.world)
            with torch.enable_grad():
                self.affine = self._mapped(view, self.batch, given)
                refuse_captured(self.affine, self.mix)
            return self.backend.weighted_affine(view, self.by, *self.affine).view(x.shape)

    def backward(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x and of the tensors: sums over x, the derivative of mix and density, one pass that writes dx."""
        view, grad, masked = cut(x), cut(dy), self.mask is not None
        if self.through and isinstance(self.by, Tensor):
            return self._plainly(dy, x, tensors, needed)
        center, scale, _ = self.affine
        total, product = self.backend.weighted_grad_sums(grad, view, self.by, center, masked=masked)[:2]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed[1:], strict=True)]
        components = self.batch and self.batch.detach()
        statistics = [] if components is None else [components.mean.requires_grad_(), components.var.requires_grad_()]
        with torch.enable_grad():
            given = self._spread(leaves)
            found = self._mapped(view, components, given)
            density = self.density(*given)
        outer = (-scale * total, product, total.sum(0, keepdim=True))
        grads = affine.through(list(zip(found, outer, strict=True)), [*statistics, *leaves])
        draw = self._draw(center, grads[: len(statistics)])
        dx, logits = self.backend.weighted_grad_input(grad, view, self.by, scale, draw, through=self.through, masked=masked)
        rest = grads[len(statistics) :]
        if logits is not None:
            pairs = [(t, fit(g, t)) for t, g in zip(density.tensors(), logits, strict=True)]
            more = affine.through(pairs, leaves)
            rest = [b if a is None else a if b is None else a + b for a, b in zip(rest, more, strict=True)]
        return [dx.view(x.shape) if needed[0] else None, *rest]

    def _draw(self, center: Tensor, grads: Sequence[Tensor | None]) -> Draw:
        """What the gradients of the moments add at every element."""
        nothing = torch.zeros_like(center)
        if self.batch is None:
            return Draw(center, nothing, nothing, center, nothing)
        d_mean, d_var = (nothing if grad is None else grad for grad in grads)
        if self.world is not None:
            d_mean, d_var = self.world.add(d_mean, d_var)
        total = fraction(self.batch.counts())
        return Draw(center, d_mean / total, d_var / total, self.batch.mean, self.batch.var)

    def _plainly(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        every = [t.detach().requires_grad_(need) for t, need in zip((x, *tensors), needed, strict=True)]
        with torch.enable_grad():
            y = self.plain(every[0], every[1:]).y
        grads = iter(torch.autograd.grad(y, [t for t in every if t.requires_grad], dy, allow_unused=True))
        return [next(grads) if t.requires_grad else None for t in every]

    def _spread(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """The arguments of density and mix, None for those that are not there."""
        rest = iter(tensors)
        return [next(rest) if here else None for here in self.present]

    def _mapped(
        self, view: Tensor, components: Moments | None, given: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Center and scale, (K, C), and bias, (1, C), in the type of statistics."""
        center, scale, bias = self.mix(components, *given)
        dtype = statistics_type(view)
        values = [t if isinstance(t, Tensor) else torch.full((1, 1), t, device=view.device) for t in (center, scale, bias)]
        center, scale, bias = (t.to(dtype) for t in values)
        return center.expand_as(scale), scale, bias.view(1, -1).expand(1, view.shape[1])

"""Batch consistency: how far statistics of a small batch are from those of the large one it is part of, plain and filtered.

After Horvath and Al-Afandi 2020, who compared 16 samples with the 128 they are part of; `examine` takes an eighth of at most 32. Their
published script took the filtered estimate from all 128, with bounds from the 16, which flatters filtering; here every estimate is of the
small batch alone. Distances are free of scale: (mean - mean_ref)² / var_ref and (log var - log var_ref)², averaged over the small batches
and over channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.cells import thinned
from normsmith.kernels.choose import backend_for
from normsmith.methods.filtered import select
from normsmith.moments import Moments

PARTS = 8  # small batches in a large one, 16 in 128
THRESHOLD = 4.0


@dataclass(frozen=True)
class Distance:
    """How far the estimates are from the reference, squared."""

    mean: float
    var: float


@dataclass(frozen=True)
class Consistency:
    """Small batches against the large one, by three ways of taking statistics."""

    small: int
    large: int
    plain: Distance  # all elements, in both
    filtered: Distance  # without outliers, in both
    mixed: Distance  # without outliers in the small ones only


def consistency(x: Tensor, cells: Moments | None = None) -> Consistency | None:
    """That of one batch of shape (N, C, ...), whose cells may be known; None if it has fewer than PARTS samples, or nothing varies."""
    small = x.shape[0] // PARTS
    if small < 1:
        return None
    x = thinned(x, small * PARTS)
    backend = backend_for(x)
    cells = backend.cell_moments(x) if cells is None else cells.map(lambda t: t[: len(x)])
    large, parts = cells.pool(0), cells.of_runs(small)
    low, high = (t.repeat_interleave(small, 0) for t in select(parts, THRESHOLD, 0.0))
    filtered = backend.cell_moments(x, (low, high)).of_runs(small)
    reference = backend.cell_moments(x, select(large, THRESHOLD, 0.0)).pool(0)
    return _compared(small, (parts, filtered), (large, reference))


def _compared(small: int, parts: tuple[Moments, Moments], wholes: tuple[Moments, Moments]) -> Consistency | None:
    """Both kinds of small batches, (PARTS, C) each, against both kinds of the large one, (1, C)."""
    order, against = [0, 1, 1], [0, 1, 0]  # plain, filtered, mixed
    means, variances = (torch.stack([getattr(m, key) for m in parts]).double() for key in ("mean", "var"))
    mean, var = (torch.stack([getattr(m, key) for m in wholes]).double() for key in ("mean", "var"))
    alive = (var[0] > 0).flatten() & var[0].isfinite().flatten()
    if not bool(alive.any()):
        return None
    means, variances = means[order][..., alive], variances[order][..., alive]
    mean, var = mean[against][..., alive], var[against][..., alive].clamp_min(torch.finfo(torch.float32).tiny)
    off = ((means - mean).square() / var).mean((1, 2)).tolist()
    # A small batch of one value has no logarithm; it counts as one of a hundred-thousandth.
    apart = ((variances / var + 1e-5) / (1 + 1e-5)).log().square().mean((1, 2)).tolist()
    return Consistency(small, small * PARTS, *(Distance(*pair) for pair in zip(off, apart, strict=True)))

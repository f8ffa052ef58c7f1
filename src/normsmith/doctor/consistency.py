"""Batch consistency: how far statistics of a small batch are from those of the large one it is part of, plain and filtered.

After Horvath and Al-Afandi 2020, who compared 16 samples with the 128 they are part of. Their published script took the filtered estimate
from all 128, with bounds from the 16, which flatters filtering; here every estimate is of the small batch alone. Distances are
free of scale: (mean - mean_ref)² / var_ref and (log var - log var_ref)², averaged over the small batches and over channels.
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


def consistency(x: Tensor) -> Consistency | None:
    """That of one batch of shape (N, C, ...); None if it has fewer than PARTS samples, or nothing varies."""
    small = x.shape[0] // PARTS
    if small < 1:
        return None
    x = thinned(x, small * PARTS)
    backend = backend_for(x)
    cells = backend.cell_moments(x)
    large, parts = cells.pool(0), cells.of_runs(small)
    narrow = select(parts, THRESHOLD, 0.0)
    bounds = narrow[0].repeat_interleave(small, 0), narrow[1].repeat_interleave(small, 0)
    filtered = backend.cell_moments(x, bounds).of_runs(small)
    reference = backend.cell_moments(x, select(large, THRESHOLD, 0.0)).pool(0)
    alive = (large.var > 0).flatten() & large.var.isfinite().flatten()
    if not bool(alive.any()):
        return None
    pairs = (parts, large), (filtered, reference), (filtered, large)
    return Consistency(small, len(x), *(distance(one, other, alive) for one, other in pairs))


def distance(parts: Moments, whole: Moments, alive: Tensor) -> Distance:
    """From moments of parts, (parts, C), to those of the whole, (1, C), over these channels."""
    means, variances, mean, var = (t.double()[:, alive] for t in (parts.mean, parts.var, whole.mean, whole.var))
    var = var.clamp_min(torch.finfo(torch.float32).tiny)
    # A small batch of one value has no logarithm; it counts as one of a hundred-thousandth.
    apart = ((variances + 1e-5 * var) / (var * (1 + 1e-5))).log()
    return Distance(float(((means - mean).square() / var).mean()), float(apart.square().mean()))

"""Batch consistency: how far statistics of a small batch are from those of the large one it is part of, plain and filtered.

After Horvath and Al-Afandi 2020, who compared 16 samples with the 128 they are part of; `examine` takes an eighth of at most 32. Their
published script took the filtered estimate from all 128, with bounds from the 16, which flatters filtering; here every estimate is of the
small batch alone. Distances are free of scale: (mean - mean_ref)² / var_ref and (log var - log var_ref)², averaged over the small batches
and over channels.
"""

from collections.abc import Sequence
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


@dataclass(frozen=True, eq=False)
class Taken:
    """What was taken of one batch: small batches and the large one, plain; and the cells of both without outliers."""

    small: int
    parts: Moments
    large: Moments
    filtered: Moments
    reference: Moments


def take(x: Tensor, cells: Moments | None = None) -> Taken | None:
    """Of a batch of shape (N, C, ...), whose cells may be known; None if it has fewer than PARTS samples."""
    small = x.shape[0] // PARTS
    if small < 1:
        return None
    x = thinned(x, small * PARTS)
    backend = backend_for(x)
    cells = backend.cell_moments(x) if cells is None else cells.map(lambda t: t[: len(x)])
    parts, large = cells.of_runs(small), cells.pool(0)
    low, high = (t.repeat_interleave(small, 0) for t in select(parts, THRESHOLD, 0.0))
    filtered, reference = (backend.cell_moments(x, bounds) for bounds in ((low, high), select(large, THRESHOLD, 0.0)))
    return Taken(small, parts, large, filtered, reference)


def consistency(x: Tensor, cells: Moments | None = None) -> Consistency | None:
    """That of one batch, as in `take`; None if it has fewer than PARTS samples, or nothing varies."""
    taken = take(x, cells)
    return None if taken is None else compare([taken])[0]


def compare(batches: Sequence[Taken]) -> list[Consistency | None]:
    """The consistency of each batch, of a layer each; None where nothing varies. Batches that are alike are worked out together."""
    found: list[Consistency | None] = [None] * len(batches)
    alike: dict[int, list[int]] = {}
    for at, taken in enumerate(batches):
        alike.setdefault(taken.small, []).append(at)
    for members in alike.values():
        for at, one in zip(members, _compared([batches[at] for at in members]), strict=True):
            found[at] = one
    return found


def _compared(batches: list[Taken]) -> list[Consistency | None]:
    """Both kinds of small batches, (PARTS, C) each, against both kinds of the large one, (1, C), channels of all behind one another."""
    small, order, against = batches[0].small, [0, 1, 1], [0, 1, 0]  # plain, filtered, mixed
    filtered = _beside([b.filtered for b in batches]).of_runs(small)
    parts = _beside([b.parts for b in batches]), filtered
    wholes = _beside([b.large for b in batches]), _beside([b.reference for b in batches]).pool(0)
    means, variances = (torch.stack([getattr(m, key) for m in parts])[order] for key in ("mean", "var"))
    mean, var = (torch.stack([getattr(m, key) for m in wholes])[against] for key in ("mean", "var"))
    alive = ((var[0] > 0) & var[0].isfinite()).flatten()
    var = torch.where(alive, var, 1).clamp_min(torch.finfo(torch.float32).tiny)
    off = (means - mean).square() / var
    # A small batch of one value has no logarithm; it counts as one of a hundred-thousandth.
    apart = ((variances / var + 1e-5) / (1 + 1e-5)).log().square()
    number = torch.arange(len(batches)).repeat_interleave(torch.tensor([b.large.mean.shape[1] for b in batches]))
    both = torch.where(alive, torch.stack([off, apart]), 0).mean(2)  # distance of means or variances, way, channel
    living = both.new_zeros(len(batches)).index_add_(0, number, alive.double())
    found = (both.new_zeros(2, 3, len(batches)).index_add_(2, number, both) / living).permute(2, 1, 0).tolist()
    return [
        Consistency(small, small * PARTS, *(Distance(*pair) for pair in pairs)) if some else None
        for pairs, some in zip(found, living.tolist(), strict=True)
    ]


def _beside(moments: list[Moments]) -> Moments:
    """Those of several layers, (rows, C) each, in float64, channels behind one another."""
    columns = zip(*((m.mean, m.var, m.counts()) for m in moments), strict=True)
    return Moments(*(torch.cat([t.cpu().double() for t in column], 1) for column in columns))

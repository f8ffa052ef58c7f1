"""How noisy the statistics of a batch are, by its size: measured on batches drawn from single samples, beside theory.

A batch of b samples is drawn with replacement from the cells (`cells.py`); its mean and variance follow from theirs by the law of total
variance. The noise of the mean is the root mean square of its distance from that of all cells, in deviations, that of the deviation its
distance from that of all cells, relative to it; both averaged over channels. What the mean does is known without drawing: the variance of
the mean of b cells is that of one over b.

Theory is that of M = b * positions independent elements: mean ~ N(mu, var / M), deviation with variance var (rho + 2) / (4 M), rho the
excess kurtosis. Positions of one sample are seldom independent: `independent` is how many of them would give the noise measured.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.cells import Cells

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 32
ENOUGH = 8  # samples to draw from
TOGETHER = 16  # layers whose batches are drawn at once


@dataclass(frozen=True)
class NoisePoint:
    """The noise of mean and deviation at one batch size, in deviations, and what theory says."""

    batch: int
    mean_noise: float
    std_noise: float
    theory_mean: float
    theory_std: float


def noise_curves(layers: Sequence[tuple[Cells, Tensor, int]]) -> list[tuple[NoisePoint, ...]]:
    """The noise at all sizes for each layer's cells, kurtosis of the chosen channels, and positions.

    Nothing if there are too few samples or nothing varies. Layers of as many samples are worked out by the dozen.
    """
    curves: list[tuple[NoisePoint, ...]] = [()] * len(layers)
    alike: dict[int, list[int]] = {}
    held = [cells.mean_and_var for cells, _, _ in layers]
    for at, part in enumerate(held):
        if part.shape[1] >= ENOUGH and part.shape[2]:
            alike.setdefault(part.shape[1], []).append(at)
    for members in alike.values():
        for start in range(0, len(members), TOGETHER):
            some = members[start : start + TOGETHER]
            found = _curves([held[at] for at in some], [layers[at][1] for at in some], [layers[at][2] for at in some])
            for at, curve in zip(some, found, strict=True):
                curves[at] = curve
    return curves


def _curves(held: list[Tensor], kurtosis: list[Tensor], positions: list[int]) -> Iterator[tuple[NoisePoint, ...]]:
    """Those of layers of equally many samples, (2, samples, channels) each."""
    mean, within = torch.cat(held, 2).unbind(0)
    samples, channels = mean.shape
    number = torch.arange(len(held)).repeat_interleave(torch.tensor([part.shape[2] for part in held]))

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(held), *values.shape[1:], dtype=torch.float64).index_add_(0, number, values.double())

    away = mean - mean.mean(0)
    squares = within + away.square()
    var = squares.mean(0)
    most = torch.zeros(len(held), dtype=torch.float64).scatter_reduce_(0, number, var, "amax")
    alive = var > 1e-12 * most[number]
    living = total(alive)
    unit = torch.where(alive, var, 1)  # a channel in which nothing varies adds nothing
    away, squares = torch.where(alive, away / unit.sqrt(), 0), torch.where(alive, squares / unit, 0)
    ones = (total(away.square().sum(0)) / (living * (samples - 1))).tolist()
    means, sizes = (torch.cat([away, squares], 1).float().T @ drawn(samples)).chunk(2)
    off = sizes.addcmul_(means, means, value=-1).clamp_min_(0).sqrt_().sub_(alive.float().unsqueeze(1))
    spreads = total(off.square_().view(channels, len(SIZES), DRAWS).sum(2)) / (DRAWS * living.unsqueeze(1))
    tails = (total(torch.where(alive, (torch.cat(kurtosis) + 2).clamp_min(0), 0)) / living).tolist()
    for one, row, tail, count, some in zip(ones, spreads.sqrt().tolist(), tails, positions, living.tolist(), strict=True):
        yield tuple(
            NoisePoint(size, (one / size) ** 0.5, spread, (size * count) ** -0.5, (tail / (4 * size * count)) ** 0.5)
            for size, spread in zip(SIZES if some else (), row if some else (), strict=True)
        )


@functools.lru_cache(maxsize=8)
def drawn(samples: int) -> Tensor:
    """The share of each sample in batches of every size drawn from them, (samples, sizes * DRAWS); always the same ones."""
    generator, rows = torch.Generator().manual_seed(0), []
    for size in SIZES:
        picked = torch.randint(0, samples, (DRAWS, size), generator=generator)
        rows.append(torch.zeros(DRAWS, samples).scatter_add_(1, picked, torch.full((DRAWS, size), 1 / size)))
    return torch.cat(rows).T.contiguous()


def independent(curve: tuple[NoisePoint, ...]) -> float | None:
    """How many independent elements a sample is worth for the mean of a batch."""
    return 1 / curve[0].mean_noise ** 2 if curve and curve[0].mean_noise > 0 else None

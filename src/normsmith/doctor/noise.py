"""How noisy the statistics of a batch are, by its size: measured on batches drawn from single samples, beside theory.

A batch of b samples is drawn with replacement from the cells (`cells.py`); its mean and variance follow from theirs by the law of total
variance. The noise of the mean is the root mean square of its distance from that of all cells, in deviations, that of the deviation its
distance from that of all cells, relative to it; both averaged over channels. What the mean does is known without drawing: the variance of
the mean of b cells is that of one over b.

Theory is that of M = b * positions independent elements: mean ~ N(mu, var / M), deviation with variance var (rho + 2) / (4 M), rho the
excess kurtosis. Positions of one sample are seldom independent: `independent` is how many of them would give the noise measured.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.cells import Cells

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DRAWS = 32
ENOUGH = 8  # samples to draw from


@dataclass(frozen=True)
class NoisePoint:
    """The noise of mean and deviation at one batch size, in deviations, and what theory says."""

    batch: int
    mean_noise: float
    std_noise: float
    theory_mean: float
    theory_std: float


def noise_curve(cells: Cells, kurtosis: Tensor, positions: int) -> tuple[NoisePoint, ...]:
    """The noise at all sizes; nothing if there are too few samples or nothing varies. `kurtosis` is that of the chosen channels."""
    mean, within = cells.mean_and_var.unbind(0)
    samples = len(mean)
    if samples < ENOUGH:
        return ()
    away = mean - mean.mean(0)
    squares = within + away.square()
    var = squares.mean(0)
    alive = var > 1e-12 * var.max()
    if not bool(alive.any()):
        return ()
    unit = torch.where(alive, var, 1)  # a channel in which nothing varies adds nothing
    away, squares = torch.where(alive, away / unit.sqrt(), 0), torch.where(alive, squares / unit, 0)
    channels = int(alive.sum())
    one = float(away.square().sum()) / (channels * (samples - 1))
    means, sizes = (torch.cat([away, squares], 1).float().T @ drawn(samples)).chunk(2)
    off = sizes.addcmul_(means, means, value=-1).clamp_min_(0).sqrt_().sub_(alive.float().unsqueeze(1))
    spreads = (off.square_().view(-1, len(SIZES), DRAWS).sum((0, 2)) / (DRAWS * channels)).sqrt().tolist()
    tails = float((kurtosis[alive] + 2).clamp_min(0).mean())
    return tuple(
        NoisePoint(size, (one / size) ** 0.5, spread, (size * positions) ** -0.5, (tails / (4 * size * positions)) ** 0.5)
        for size, spread in zip(SIZES, spreads, strict=True)
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

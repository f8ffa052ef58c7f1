"""How far the data given are from what the running statistics of a layer are of, and what adapting them is worth.

With N(r, u) the source, as the buffers have it, and N(m, v) the data, both variances with eps: per channel the symmetric Kullback-Leibler
divergence ((v + d²) / u + (u + d²) / v) / 2 - 1 with d = m - r, the sum of both directions, and the Wasserstein distance
sqrt(d² + (√v - √u)²), in deviations of the source. Averaged over channels.

`ns.adapt(model, loader, method="adabn")` makes the statistics those of the data, so that what is left of the gap (`checks/_gap.py`) on
other data of that domain is what statistics of so many samples are wrong by: the noise of mean and deviation at the number of samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.checks._gap import gap
from normsmith.doctor.observation import Layer


@dataclass(frozen=True)
class Shift:
    """The distance from the source in two measures, the gap there is, and the gap that `ns.adapt` would leave."""

    divergence: float
    wasserstein: float
    gap: float
    adapted: float

    @property
    def gain(self) -> float:
        """By how much adapting would lower the gap; nothing where the statistics are as good as these data can make them."""
        return max(self.gap - self.adapted, 0.0)


def divergence(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of Gaussians, both directions together."""
    square = (mean - other_mean).square()
    return ((var + square) / other_var + (other_var + square) / var) / 2 - 1


def wasserstein(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """The 2-Wasserstein distance of Gaussians."""
    return ((mean - other_mean).square() + (var.sqrt() - other_var.sqrt()).square()).sqrt()


def shift(layer: Layer, samples: int) -> Shift | None:
    """That of a layer with running statistics which saw data of so many samples; None where they are not finite, or not there."""
    moments = layer.moments if layer.tracked else None
    if moments is None:
        return None
    source_mean, source_var = (t.cpu() for t in layer.running())
    if not bool((source_mean - source_var).isfinite().all()):
        return None
    own = getattr(layer.module, "part_of", lambda statistic: statistic)
    mean, var = own(moments.mean.flatten()), own(moments.var.flatten())
    tiny = torch.finfo(torch.float64).tiny
    var, source_var = (var + layer.eps).clamp_min(tiny), (source_var + layer.eps).clamp_min(tiny)
    found = gap(layer)
    left = found.chance
    if layer.noise_curve and samples:
        last = layer.noise_curve[-1]
        left = ((last.mean_noise**2 + last.std_noise**2) * last.batch / samples) ** 0.5
    return Shift(
        float(divergence(mean, var, source_mean, source_var).mean()),
        float((wasserstein(mean, var, source_mean, source_var) / source_var.sqrt()).mean()),
        found.size,
        min(left, found.size),
    )

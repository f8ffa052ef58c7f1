"""How far the data given are from what the running statistics of a layer are of, and what adapting them is worth.

With N(r, u) the source, as the buffers have it, and N(m, v) the data, both variances with eps: per channel the symmetric Kullback-Leibler
divergence ((v + d²) / u + (u + d²) / v) / 2 - 1 with d = m - r, the sum of both directions, and the Wasserstein distance
sqrt(d² + (√v - √u)²), in deviations of the source. Averaged over channels.

`ns.adapt(model, loader, method="adabn")` makes the statistics those of the data, so that what is left of the gap (`checks/_gap.py`) on
other data of that domain is what statistics of so many samples are wrong by: the noise of mean and deviation at the number of samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.checks._gap import gap, take_gaps
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


def take_shifts(layers: Sequence[Layer]) -> None:
    """Fill in those of the layers with running statistics which saw data; none where the statistics are not finite."""
    tracked = [layer for layer in layers if layer.tracked and layer.reached]
    if not tracked:
        return
    have = take_gaps(tracked)
    tiny = torch.finfo(torch.float64).tiny
    var, source_var = ((v + have.eps).clamp_min(tiny) for v in (have.var, have.running_var))
    both = have.mean, var, have.running_mean, source_var
    sizes = torch.tensor(have.sizes)
    finite = have.total((~(have.running_mean - have.running_var).isfinite()).double()) == 0
    divergences = (have.total(divergence(*both)) / sizes).tolist()
    distances = (have.total(wasserstein(*both) / source_var.sqrt()) / sizes).tolist()
    for layer, known, apart, away in zip(tracked, finite.tolist(), divergences, distances, strict=True):
        if known:
            size = gap(layer).size
            layer.shift = Shift(apart, away, size, min(_left(layer), size))


def _left(layer: Layer) -> float:
    """The gap that adapting leaves."""
    samples = sum(layer.samples)
    if not layer.noise_curve or not samples:
        return gap(layer).chance
    last = layer.noise_curve[-1]
    return float(((last.mean_noise**2 + last.std_noise**2) * last.batch / samples) ** 0.5)

"""`LayerView`: what a page shows of one layer, as plain data; and what is drawn from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normsmith.doctor.checks._gap import gap
from normsmith.doctor.exceedances import gaussian_fraction
from normsmith.doctor.noise import NoisePoint
from normsmith.doctor.observation import Layer
from normsmith.doctor.profile import Profile
from normsmith.doctor.samples import Sample

REACH, BARS = 6.0, 60  # deviations on either side that the histogram shows, and its bars
TAIL = tuple([0.5 + 0.25 * step for step in range(31)] + [8 * 16 ** (step / 16) for step in range(1, 17)])  # to 128


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer: numbers of every channel by what they are, each (C,); histograms; and what further analyses found."""

    name: str
    kind: str
    channels: Mapping[str, Tensor]
    profile: Profile | None = field(repr=False, default=None)
    noise: Sequence[NoisePoint] = ()
    samples: Sequence[Sample] = ()
    facts: Sequence[tuple[str, float]] = ()  # single numbers

    @property
    def size(self) -> int:
        """How many channels."""
        return max((len(values) for values in self.channels.values()), default=0)

    def representatives(self, most: int) -> Tensor:
        """All channels, or of more than `most` one for each of so many groups of neighbours: that which is furthest from what is usual."""
        if self.size <= most:
            return torch.arange(self.size)
        distance = torch.stack([_unusual(values) for values in self.channels.values()]).amax(0)
        groups = torch.arange(self.size) * most // self.size
        order = distance.argsort(stable=True)  # the furthest of a group is written last
        chosen = torch.zeros(most, dtype=torch.int64)
        for channel in order.tolist():
            chosen[groups[channel]] = channel
        return chosen


def view_of(layer: Layer) -> LayerView:
    """What is known of a layer after observation. Statistics that later change are copied, histograms are not."""
    if layer.profile is None or not layer.reached:
        return LayerView(layer.name, layer.kind, {})
    shape = layer.profile.to(torch.device("cpu")).moments
    found = {"mean": shape.mean.clone(), "deviation": shape.std}
    if layer.tracked:
        mean, var = (t.cpu() for t in layer.running())
        found |= {"running mean": mean.clone(), "running deviation": var.sqrt(), "gap": gap(layer).channels}
    found |= {"skewness": shape.skewness, "excess kurtosis": shape.kurtosis, "weight": layer.gain().cpu().clone()}
    return LayerView(
        layer.name,
        layer.kind,
        {key: values for key, values in found.items() if len(values.shape) == 1 and len(values) == len(shape.mean)},
        layer.profile,
        layer.noise_curve,
        layer.top_samples,
        tuple(_facts(layer)),
    )


def _facts(layer: Layer) -> Iterator[tuple[str, float]]:
    """Single numbers of the further analyses, as far as there are any."""
    if layer.shift is not None:
        yield "shift, deviations", layer.shift.wasserstein
        yield "gap if adapted", layer.shift.adapted
    if layer.consistency is not None:
        small, large = layer.consistency.small, layer.consistency.large
        yield f"means of {small} off those of {large}, squared", layer.consistency.plain.mean
        yield "the same, filtered", layer.consistency.filtered.mean
    if layer.specificity is not None:
        yield "outlier tails for one sample", layer.specificity.one_sample
        yield "for one class", layer.specificity.one_class
        yield "for all kinds", layer.specificity.general


@dataclass(frozen=True)
class Shape:
    """How the elements of a layer are distributed, each channel brought to mean 0 and deviation 1; the same of a Gaussian."""

    middles: list[float]  # of the bars of a histogram
    density: list[float]
    gaussian: list[float]
    beyond: list[float]  # numbers of deviations
    share: list[float | None]  # of the elements further out than that; None where there is none
    gaussian_share: list[float | None]


def shape_of(profile: Profile) -> Shape:
    """Counts are interpolated within the bins of each channel; channels of one value are left out."""
    profile = profile.to(torch.device("cpu"))
    moments = profile.moments
    used = (moments.std > 0).nonzero().flatten()
    borders, steps = torch.linspace(-REACH, REACH, BARS + 1, dtype=torch.float64), torch.tensor(TAIL, dtype=torch.float64)
    places = torch.cat([borders, -steps, steps])
    mean, std = moments.mean[used].unsqueeze(1), moments.std[used].unsqueeze(1)
    total = float(moments.count[used].sum())
    below = profile.cumulated(mean + std * places, used).sum(0)
    inner, left, right = torch.split(below, [len(borders), len(steps), len(steps)])
    width, whole = 2 * REACH / BARS, max(total, 1.0)
    outside = (left + total - right).tolist()
    held = [(t, count) for t, count in zip(TAIL, outside, strict=True) if count > 0.5]
    shown = TAIL[: max(len(held), 11)]  # to three deviations at least
    shares = [count / total for _, count in held]
    return Shape(
        ((borders[1:] + borders[:-1]) / 2).tolist(),
        (inner.diff() / whole / width).tolist(),
        (torch.special.ndtr(borders).diff() / width).tolist(),
        list(shown),
        [*shares, *[None] * (len(shown) - len(shares))],
        [part if part > 0.1 / whole else None for part in map(gaussian_fraction, shown)],
    )


def _unusual(values: Tensor) -> Tensor:
    """The distance from the median, in units of that of half of the values; 0 for what is no number."""
    away = (values - values.nanmedian()).abs()
    scale = float(away.nanmedian())
    away = torch.where(away.isfinite(), away, 0)
    return away / (scale if math.isfinite(scale) and scale > 0 else max(float(away.max()), 1e-300))

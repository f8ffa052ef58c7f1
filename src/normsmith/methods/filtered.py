"""Filtered batch norm: batch norm whose statistics leave out the outliers of a channel.

Formula: first mean m0 and biased variance v0 over (N, *spatial); the elements with |x - m0| / sqrt(v0 + eps) < threshold give mean and
biased variance; y = (x - mean) / sqrt(var + eps) * weight + bias for all elements, the outliers too. Running statistics are the
filtered ones, the variance unbiased; evaluation is that of batch norm.

Differs from batch norm: one activation far out, the mark of one image, no longer sets the scale of its channel. A channel of n elements
has none beyond sqrt(n - 1) deviations, so that up to n = threshold² + 1 (17 of the default) the two are the same. A threshold of 1 or
less may select nothing: such a channel is not filtered, nor is one whose spread is that of rounding around its mean.
Differs from the lecture and the authors' code: "select samples" of the lecture means elements, not images. The code has an unbiased
variance in the first pass, and in one of its files in the second too (`unbiased="first"`, `"both"`); its eps is 1e-10 in one file; one
class has no running statistics, the one for vectors a single weight and bias over all channels: here each channel has its own.
The variance of a Gaussian cut at 4 is 0.99893 of the whole; nobody corrects that (`gaussian_correction=True` does).
The selection is a constant for the gradient. With `accumulate` every micro-batch selects by itself.
Cost: 3 passes over x forward, 2 over x and dy backward; evaluation 1. Synchronised, two collectives forward.
Fails when: the outliers are the signal, or there are so many that they set m0 and v0.
Reference: Horvath and Al-Afandi, "Filtered Batch Normalization", ICPR 2020.
"""

import math
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.kernels import Bounds
from normsmith.measure import measure
from normsmith.methods._base import one_of
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize

EMPTY_UP_TO = 1.01  # Chebyshev: above a threshold of 1 something is always selected; with room for rounding
INSIDE_ROUNDING = 8  # a spread of so many last places of the mean is none


def mix(
    cells: None, batch: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float, unbiased: bool, factor: float
) -> Standardized:
    return Standardized(kept(batch, unbiased, factor), weight, bias, eps)


def kept(selected: Moments, unbiased: bool, factor: float) -> Moments:
    """The statistics of what was selected, by these conventions."""
    if factor == 1 and not unbiased:
        return selected
    var = selected.unbiased() if unbiased else selected.var
    return Moments(selected.mean, var * factor, selected.count)


def select(moments: Moments, threshold: float, eps: float, unbiased: bool = False) -> Bounds:
    """The bounds of what is closer to the mean than `threshold` deviations."""
    radius = threshold * ((moments.unbiased() if unbiased else moments.var) + eps).sqrt()
    rounding = INSIDE_ROUNDING * torch.finfo(radius.dtype).eps * moments.mean.abs()
    radius = torch.where(radius <= rounding, math.inf, radius)
    return moments.mean - radius, moments.mean + radius


def unless_empty(bounds: Bounds, selected: Moments) -> Bounds:
    """No bounds where they select nothing."""
    empty = selected.counts() == 0
    return torch.where(empty, -math.inf, bounds[0]), torch.where(empty, math.inf, bounds[1])


def check_threshold(name: str, threshold: float) -> None:
    """Raise for a threshold that selects nothing ever."""
    if not threshold > 0:
        raise OptionError(
            f"{name} expects threshold, in standard deviations, above zero: got {threshold!r}; try 4.0, or math.inf for no filter"
        )


def gaussian_factor(threshold: float) -> float:
    """By how much the variance of Gaussian data is larger than that of those within `threshold` deviations."""
    density = math.exp(-threshold * threshold / 2) / math.sqrt(2 * math.pi)
    return 1 / (1 - (2 * threshold * density / math.erf(threshold / math.sqrt(2)) if threshold < math.inf else 0))


class FilteredNorm(RunningNormalizer):
    """Filtered batch norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show filtered`."""

    def __init__(
        self,
        num_features: int,
        *,
        threshold: float = 4.0,
        gaussian_correction: bool = False,
        unbiased: Literal["none", "first", "both"] = "none",
        **running: Unpack[Running],
    ) -> None:
        super().__init__(num_features, **running)
        check_threshold(type(self).__name__, threshold)
        one_of(type(self).__name__, "unbiased", unbiased, ("none", "first", "both"))
        self.threshold = threshold
        self.gaussian_correction = gaussian_correction
        self.unbiased = unbiased

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return self.by_running(x, mask)
        factor = gaussian_factor(self.threshold) if self.gaussian_correction else 1.0
        options = partial(mix, eps=self.eps, unbiased=self.unbiased == "both", factor=factor)
        within = self._within(x, mask)
        result = normalize(
            x, options, self.weight, self.bias, sees="batch", within=within, mask=mask, world=self.world, act=self.bend
        )
        assert result.batch is not None
        self.update(kept(result.batch, False, factor))
        return result.y

    def _within(self, x: Tensor, mask: Tensor | None) -> Bounds | None:
        """The bounds of each channel; None where nothing can be beyond them."""
        if self.world is None and x.numel() // self.num_features <= self.threshold**2 + 1:
            return None
        with torch.no_grad():
            _, batch = measure(x, sees="batch", mask=mask, world=self.world)
            assert batch is not None
            bounds = select(batch, self.threshold, self.eps, self.unbiased != "none")
            if self.threshold < EMPTY_UP_TO:
                _, selected = measure(x, sees="batch", within=bounds, mask=mask, world=self.world)
                assert selected is not None
                bounds = unless_empty(bounds, selected)
        return bounds

    def options(self) -> dict[str, Any]:
        own = {"threshold": self.threshold, "gaussian_correction": self.gaussian_correction, "unbiased": self.unbiased}
        return {**own, **super().options()}

"""How many elements lie further than t standard deviations from their channel's mean, beside how many of a Gaussian would."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.profile import Profile

THRESHOLDS = (3.0, 4.0, 5.0, 6.0, 7.0)


def gaussian_fraction(t: float) -> float:
    """The part of a Gaussian further than t standard deviations from its mean, on both sides: erfc(t / sqrt(2))."""
    return math.erfc(t / math.sqrt(2))


@dataclass(frozen=True)
class Exceedances:
    """Per channel and threshold, (C, T); mean and standard deviation are those of all data, whatever the histogram's grid."""

    thresholds: tuple[float, ...]
    total: Tensor  # elements of each channel, (C, 1)
    count: Tensor  # exact where the histogram's bins at both thresholds are empty, else interpolated in them
    low: Tensor  # the exact count is between
    high: Tensor  # these two
    expected: Tensor  # of a Gaussian

    @property
    def fraction(self) -> Tensor:
        """The part of the elements that is beyond; 0 without elements."""
        return self.count / self.total.clamp_min(1)

    @property
    def ratio(self) -> Tensor:
        """How many times as many as of a Gaussian; 0 without elements."""
        return self.count / self.expected.clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def uncertainty(self) -> Tensor:
        """The binomial standard deviation of the count of a Gaussian, were its elements independent."""
        return (self.expected * (1 - self.expected / self.total.clamp_min(1))).sqrt()

    @property
    def chance(self) -> Tensor:
        """The probability that a Gaussian has at least that many (Poisson), were its elements independent."""
        some = self.count > 0
        return torch.where(some, torch.special.gammainc(torch.where(some, self.count, 1), self.expected), 1)


def exceedances(profile: Profile, thresholds: tuple[float, ...] = THRESHOLDS) -> Exceedances:
    """Elements beyond these numbers of standard deviations from the mean; none in a channel of one value.

    Within a bin at a threshold, at most (1 + t) / 32 of the grid's scale wide, the logarithm of the tail is interpolated: for a Gaussian
    that is right to 0.2 % of the count at 3 and 0.8 % at 7; `low` and `high` are bounds for any data.
    """
    mean, std = profile.moments.mean.unsqueeze(1), profile.moments.std.unsqueeze(1)
    steps = torch.tensor(thresholds, dtype=torch.float64, device=mean.device) * std
    below, above = profile.below(mean - steps), profile.above(mean + steps)
    count, low, high = (torch.where(std > 0, one + two, 0) for one, two in zip(below, above, strict=True))
    total = profile.moments.count.unsqueeze(1)
    parts = torch.tensor([gaussian_fraction(t) for t in thresholds], dtype=torch.float64, device=mean.device)
    return Exceedances(tuple(thresholds), total, count, low, high, total * parts)

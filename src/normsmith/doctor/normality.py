"""Whether a channel is Gaussian: two tests on skewness and kurtosis, and sizes of effect.

With the counts of activations any departure is significant, and the tests take elements for independent, which neighbours on a map are
not. So judge by `effect` and `distance`, which do not grow with the count, and use the tests to tell a departure from chance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.moments import FourMoments
from normsmith.doctor.profile import Profile

FEWEST = 8  # elements, below which D'Agostino's approximation of the skewness's distribution does not hold


@dataclass(frozen=True)
class Normality:
    """Per channel, (C,); channels of one value or of fewer than 8 elements have statistics of 0 and probabilities of 1."""

    k2: Tensor  # D'Agostino and Pearson's K²
    k2_chance: Tensor  # the probability of that K² or a larger one, of a Gaussian
    jarque_bera: Tensor
    jarque_bera_chance: Tensor
    effect: Tensor  # sqrt(skewness² / 6 + kurtosis² / 24), which is sqrt(Jarque-Bera / count)


def normality(moments: FourMoments) -> Normality:
    """D'Agostino's K², as scipy.stats.normaltest has it, Jarque-Bera, and the size of the effect."""
    skewness, kurtosis, count = moments.skewness, moments.kurtosis, moments.count
    judged = (count >= FEWEST) & (moments.std > 0)
    n = count.clamp_min(FEWEST)
    k2 = torch.where(judged, _skew_score(skewness, n) ** 2 + _kurtosis_score(kurtosis + 3, n) ** 2, 0)
    effect = (skewness**2 / 6 + kurtosis**2 / 24).sqrt()
    bera = torch.where(judged, n * effect**2, 0)
    return Normality(k2, (-k2 / 2).exp(), bera, (-bera / 2).exp(), effect)


def _skew_score(skewness: Tensor, n: Tensor) -> Tensor:
    """D'Agostino 1970: about standard normal for a Gaussian."""
    y = skewness * ((n + 1) * (n + 3) / (6 * (n - 2))).sqrt()
    beta = 3 * (n**2 + 27 * n - 70) * (n + 1) * (n + 3) / ((n - 2) * (n + 5) * (n + 7) * (n + 9))
    square = (2 * (beta - 1)).sqrt() - 1
    return (y / (2 / (square - 1)).sqrt()).asinh() / (0.5 * square.log()).sqrt()


def _kurtosis_score(kurtosis: Tensor, n: Tensor) -> Tensor:
    """Anscombe and Glynn 1983: about standard normal for a Gaussian."""
    variance = 24 * n * (n - 2) * (n - 3) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    x = (kurtosis - 3 * (n - 1) / (n + 1)) / variance.sqrt()
    root = 6 * (n**2 - 5 * n + 2) / ((n + 7) * (n + 9)) * (6 * (n + 3) * (n + 5) / (n * (n - 2) * (n - 3))).sqrt()
    a = 6 + 8 / root * (2 / root + (1 + 4 / root**2).sqrt())
    denominator = 1 + x * (2 / (a - 4)).sqrt()
    cube = ((1 - 2 / a) / denominator.abs().clamp_min(torch.finfo(torch.float64).tiny)).pow(1 / 3)
    return (1 - 2 / (9 * a) - denominator.sign() * cube) / (2 / (9 * a)).sqrt()


def distance(profile: Profile) -> Tensor:
    """The Kolmogorov distance to the Gaussian of the same mean and variance, (C,), at the borders of the bins.

    That is at most the largest share of a bin below the distance over all values. 0 for a channel of one value.
    """
    mean, std = profile.moments.mean.unsqueeze(1), profile.moments.std.unsqueeze(1)
    held = std > 0
    borders = profile.edges()
    below = profile.tallies.long().cumsum(1) / profile.moments.count.clamp_min(1).unsqueeze(1)
    inner = torch.special.ndtr((borders[:, 1:] - mean) / torch.where(held, std, 1))
    # Borders that the extremes of the data clamp are those without an element beyond.
    return torch.where(held, (below - inner).abs(), 0).amax(1)

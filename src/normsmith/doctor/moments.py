"""`FourMoments`: count, mean, variance, skewness, kurtosis and extremes of every channel, of any number of batches."""

import torch
from torch import Tensor

from normsmith.doctor._describe import (
    COUNT,
    FOURTH,
    HIGH,
    LOW,
    MEAN,
    NOT_FINITE,
    SECOND,
    THIRD,
    Extremes,
    checked,
    describe,
    no_facts,
    union,
)
from normsmith.errors import InputError


class FourMoments:
    """Central moments to the fourth of every channel, in float64, with elements that are not finite counted aside.

    Sums are taken of powers of the deviation from a block's own mean, and blocks are merged as unions are, so nothing cancels: data
    with a mean of 10 000 standard deviations give what their deviations alone would.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.channels = channels
        self.facts = no_facts(channels, device)

    @classmethod
    def of(cls, facts: Tensor) -> "FourMoments":
        """The moments that these facts, (C, 8), are."""
        moments = cls(len(facts), facts.device)
        moments.facts.copy_(facts)
        return moments

    @classmethod
    def of_cells(cls, x: Tensor) -> "FourMoments":
        """The moments of every cell of x of shape (N, C, ...): those of sample n and channel c are at n * C + c."""
        if x.dim() < 2:
            raise InputError(
                f"of_cells expects a tensor of shape (N, C, ...): got {tuple(x.shape)}; add the dimension of samples"
            )
        cells = x.shape[0] * x.shape[1]
        moments = cls(cells, x.device)
        moments.add(x.reshape(1, cells, -1) if x.numel() else x.new_empty((0, cells)))
        return moments

    def add(self, x: Tensor) -> Extremes:
        """Add a batch of shape (N, C, ...); the extremes of its cells, which the pass finds too."""
        view = checked(x, self.channels, "FourMoments")
        self.facts = self.facts.to(view.device)
        return describe(view, self.facts)

    def merge(self, other: "FourMoments") -> "FourMoments":
        """The moments of the elements of both."""
        return FourMoments.of(union(self.facts, other.facts.to(self.facts.device)))

    def pooled(self) -> "FourMoments":
        """The moments of all channels together, as of one."""
        facts = self.facts
        while len(facts) > 1:
            rest = facts[len(facts) // 2 * 2 :]
            facts = torch.cat([union(facts[: len(facts) // 2], facts[len(facts) // 2 : len(facts) // 2 * 2]), rest])
        return FourMoments.of(facts)

    def standardized(self) -> "FourMoments":
        """The moments of every channel brought to mean 0 and variance 1; a channel of one value counts nothing."""
        facts, std = self.facts.clone(), self.std
        held = std > 0
        unit = torch.where(held, std, 1)
        for column in (LOW, HIGH):
            facts[:, column] = (facts[:, column] - self.mean) / unit
        for power, column in enumerate((SECOND, THIRD, FOURTH), 2):
            facts[:, column] /= unit**power
        facts[:, MEAN] = 0
        return FourMoments.of(torch.where(held.unsqueeze(1), facts, no_facts(1, facts.device)))

    def state(self) -> list[Tensor]:
        """The tensors that are all there is to it."""
        return [self.facts]

    def restored(self, state: list[Tensor]) -> "FourMoments":
        """A stream like this one with that state."""
        return FourMoments.of(state[0])

    @property
    def count(self) -> Tensor:
        """How many finite elements."""
        return self.facts[:, COUNT]

    @property
    def not_finite(self) -> Tensor:
        """How many elements are NaN or infinite; no other number has them in it."""
        return self.facts[:, NOT_FINITE]

    @property
    def mean(self) -> Tensor:
        """The mean, 0 without elements."""
        return self.facts[:, MEAN]

    @property
    def var(self) -> Tensor:
        """The biased variance, 0 without elements."""
        return self.facts[:, SECOND] / self.count.clamp_min(1)

    @property
    def std(self) -> Tensor:
        """The root of the variance."""
        return self.var.sqrt()

    @property
    def low(self) -> Tensor:
        """The least element, infinite without elements."""
        return self.facts[:, LOW]

    @property
    def high(self) -> Tensor:
        """The greatest element, minus infinite without elements."""
        return self.facts[:, HIGH]

    @property
    def skewness(self) -> Tensor:
        """E[(x - mean)^3] / std^3; 0 where the variance is."""
        second, third = self.facts[:, SECOND], self.facts[:, THIRD]
        unit = torch.where(second > 0, second, 1)
        return torch.where(second > 0, third / unit * (self.count / unit).sqrt(), 0)

    @property
    def kurtosis(self) -> Tensor:
        """E[(x - mean)^4] / std^4 - 3, the excess over a Gaussian's; 0 where the variance is."""
        second, fourth = self.facts[:, SECOND], self.facts[:, FOURTH]
        unit = torch.where(second > 0, second, 1)
        return torch.where(second > 0, fourth / unit * (self.count / unit) - 3, 0)

"""What each call of a layer alone had: how the means of batches scatter, which calls were not finite, how far calls lie apart."""

import torch
from torch import Tensor

from normsmith.doctor._describe import COUNT, MEAN, NOT_FINITE, SECOND
from normsmith.moments import Moments

TOGETHER = 12


class Calls:
    """Worked out by the dozen, from the sums before and after each call, which is faster than one by one."""

    def __init__(self) -> None:
        self.apart = 0.0  # of a layer called several times in a forward: how far the calls' means lie apart, in deviations
        self.most = 0  # calls in one forward of the model
        self._means: Moments | None = None
        self._nonfinite = 0
        self._base: Tensor | None = None  # the facts before the calls that wait
        self._waiting: list[tuple[Tensor, int]] = []  # the facts after a call, and its samples
        self._in_forward = 0

    def begin(self, facts: Tensor) -> None:
        """The facts before a call."""
        if self._base is None:
            self._base = facts.clone()

    def end(self, facts: Tensor, samples: int) -> None:
        """The facts after it."""
        self._waiting.append((facts.clone(), samples))
        self._in_forward += 1

    def end_forward(self) -> None:
        """Compare the calls of one forward, where there were several."""
        calls, self._in_forward = self._in_forward, 0
        self.most = max(self.most, calls)
        if calls > 1:
            each, finite = self.last(calls)
            if bool(finite.all()):
                deviation = each.var.mean(0).sqrt().clamp_min(1e-12)
                self.apart = max(self.apart, float(((each.mean.amax(0) - each.mean.amin(0)) / deviation).mean()))
        if len(self._waiting) >= TOGETHER:
            self._settle()

    def _middles(self, calls: int) -> tuple[Tensor, Tensor, Tensor]:
        """The means of each of the last calls, (calls, C), which of them were finite, and all facts before and after each."""
        assert self._base is not None
        every = [self._base.to(self._waiting[-1][0].device), *(after for after, _ in self._waiting)]
        facts = torch.stack(every[-calls - 1 :]).cpu()
        count, total = facts[..., COUNT], facts[..., COUNT] * facts[..., MEAN]
        finite = (facts[1:, :, NOT_FINITE] == facts[:-1, :, NOT_FINITE]).all(1)
        return total.diff(dim=0) / count.diff(dim=0).clamp_min(1), finite, facts

    def last(self, calls: int) -> tuple[Moments, Tensor]:
        """The moments of each of the last calls, (calls, C), and which of them were finite."""
        mean, finite, facts = self._middles(calls)
        before, after = facts[:-1], facts[1:]
        count = after[..., COUNT] - before[..., COUNT]
        between = (mean - before[..., MEAN]).square() * before[..., COUNT] * count / after[..., COUNT].clamp_min(1)
        var = ((after[..., SECOND] - before[..., SECOND] - between) / count.clamp_min(1)).clamp_min(0)
        return Moments(mean, var, count), finite

    def _settle(self) -> None:
        if not self._waiting:
            return
        mean, finite, _ = self._middles(len(self._waiting))
        samples = torch.tensor([samples for _, samples in self._waiting], dtype=torch.float64)
        self._base, self._waiting = self._waiting[-1][0], []
        if not bool(finite.all()):
            self._nonfinite += int((~finite).sum())
            mean, samples = mean[finite], samples[finite]
        if len(samples):
            total = samples.sum(0, keepdim=True)
            shares = samples / total
            middle = shares @ mean
            self._add(Moments(middle, shares @ (mean - middle).square(), total).map(lambda t: t.unsqueeze(0)))

    def _add(self, means: Moments | None) -> None:
        if means is not None:
            self._means = means if self._means is None else self._means.merge(means)

    @property
    def nonfinite(self) -> int:
        """Calls with NaN or infinity in the input."""
        self._settle()
        return self._nonfinite

    @property
    def means(self) -> Moments | None:
        """How the means of batches scatter, each with the weight of its samples."""
        self._settle()
        return self._means

    @classmethod
    def together(cls, *parts: "Calls") -> "Calls":
        """What all of them have seen, settled."""
        every = cls()
        for part in parts:
            every._add(part.means)
            every._nonfinite += part.nonfinite
            every.apart, every.most = max(every.apart, part.apart), max(every.most, part.most)
        return every

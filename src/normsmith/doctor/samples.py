"""Which samples hold the outliers of a layer, of which class they are, and whether a channel is for them alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor._describe import Extremes, in_kernels
from normsmith.doctor.moments import FourMoments
from normsmith.doctor.topk import LAST, TopK, ordered, scores_of

KEPT, SHOWN = 8, 8
FIRES, FLOOR = 5.0, 4.0  # deviations
FEW, MAJORITY, CHANCE = 4, 0.75, 0.01


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of the loader, counted from 0, and the channel where it lies the furthest from the mean, in deviations."""

    index: int
    label: int | None
    channel: int
    score: float
    thumbnail: Tensor | None  # uint8, (1 or 3, height, width)


@dataclass(frozen=True)
class Specificity:
    """Of the tails of channels with a sample beyond FIRES deviations: how many fire for one sample, for one class, or for all kinds."""

    one_sample: int
    one_class: int
    general: int


def samples_of(keys: Tensor) -> Tensor:
    """The numbers of the samples in these keys, -1 where there is none."""
    numbers = keys & LAST
    return torch.where(numbers == 0, -1, LAST - numbers)


class Outlying(TopK):
    """The samples with the largest and with the smallest elements of every channel: a row for each of both tails.

    Elements themselves are kept, not their distances from a mean that is not known before the end, so scores are exact. Taken are
    those more than FLOOR deviations out by the statistics of the first batch, which spares most of the work.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        super().__init__(2 * channels, KEPT, device)
        self._begun = False

    def begin(self, moments: FourMoments) -> None:
        """Fill the rows with places that only elements beyond the floor take: of no sample, with the floor for a score."""
        floor = torch.cat([moments.mean, -moments.mean]) + FLOOR * torch.cat([moments.std, moments.std])
        with torch.inference_mode(False):  # that of the forward ends before the last of it is looked at
            self.keys = (ordered(floor.float()).long() << 32).unsqueeze(1).expand(-1, self.k).clone()
        self._begun = True

    def look(self, cells: Extremes, numbers: Tensor, moments: FourMoments) -> None:
        """Add the extremes of cells, of one or several adjacent rows for each of these samples, to a layer of these moments so far."""
        if not self._begun:
            self.begin(moments)
        low, high = cells
        rows = numbers.shape[0]
        if high.shape[0] != rows:
            low, high = (t.reshape(rows, -1, t.shape[1]) for t in cells)
            low, high = low.amin(1), high.amax(1)
        self.keys = self.keys.to(high.device)
        if high.dtype == torch.float32 and low.stride() == high.stride() and in_kernels(high):
            from normsmith.kernels.cpu.describe import keep_tails  # noqa: PLC0415  (numba)

            keep_tails(low, high, numbers.to(high.device, torch.int64).contiguous(), self.keys)
            return
        self._keep(high, numbers, self.keys[: self.channels // 2])
        self._keep(-low, numbers, self.keys[self.channels // 2 :])

    @property
    def samples(self) -> Tensor:
        """The numbers of the samples, (2C, k), the furthest first; -1 where there are fewer than k beyond the floor."""
        return samples_of(self.keys)

    def restored(self, state: list[Tensor]) -> "Outlying":
        """A stream like this one with that state."""
        return self._of(state[0].clone(memory_format=torch.contiguous_format))

    def _of(self, keys: Tensor) -> "Outlying":
        """Such a stream of these rows."""
        stream = Outlying(0, keys.device)
        stream.channels, stream.keys = len(keys), keys
        return stream

    def deviations(self, moments: FourMoments) -> Tensor:
        """How many deviations from the mean of its channel each kept element is, (2C, k); minus infinity where there is none finite."""
        mean, std = moments.mean.to(self.keys.device), moments.std.to(self.keys.device)
        return _deviations(self.keys, torch.cat([mean, -mean]), torch.cat([std, std]))

    def top(self, moments: FourMoments, count: int = SHOWN) -> list[tuple[int, int, float]]:
        """Sample, channel and score of the samples furthest out, each once, the furthest first."""
        return tops([(self, moments)], count)[0]

    def specificity(self, moments: FourMoments, labels: Tensor | None) -> Specificity:
        """What the tails with outliers fire for; `labels` has one for each sample, by its number.

        For one sample: no other is beyond. For one class: at least FEW of those kept are beyond, MAJORITY of them of that class, and by
        chance that would be so in less than one case in a hundred.
        """
        beyond = (self.deviations(moments) > FIRES).cpu()
        fires = beyond.any(1)
        beyond, samples = beyond[fires], self.samples.cpu()[fires]
        one_sample, one_class = int((beyond.sum(1) == 1).sum()), 0
        if labels is not None and len(beyond):
            _, kinds, counts = torch.unique(labels, return_inverse=True, return_counts=True)
            one_class = _of_one_class(kinds[samples.clamp_min(0)], beyond, counts.double() / len(labels))
        return Specificity(one_sample, one_class, len(beyond) - one_sample - one_class)


def _deviations(keys: Tensor, center: Tensor, unit: Tensor) -> Tensor:
    """How many of these units from the center of its row each kept element is, (rows, k); minus infinity where there is none finite."""
    scores, unit = scores_of(keys).double(), unit.unsqueeze(1)
    held = (unit > 0) & ((keys & LAST) != 0) & scores.isfinite()
    return torch.where(held, (scores - center.unsqueeze(1)) / torch.where(unit > 0, unit, 1), -torch.inf)


def tops(streams: Sequence[tuple[Outlying, FourMoments]], count: int = SHOWN) -> list[list[tuple[int, int, float]]]:
    """Of each stream, of a layer of these moments, sample, channel and score of the samples furthest out, as in `Outlying.top`."""
    if not streams:
        return []
    wanted = 16 * count  # elements, among which there are so many samples
    keys = torch.cat([outlying.keys.cpu() for outlying, _ in streams])
    every = FourMoments.of(torch.cat([moments.facts.cpu() for _, moments in streams]))
    sizes = [moments.channels for _, moments in streams]
    mean, std = (torch.split(t, sizes) for t in (every.mean, every.std))
    center, unit = torch.cat([t for m in mean for t in (m, -m)]), torch.cat([t for s in std for t in (s, s)])
    held = ((keys & LAST) != 0).any(1).nonzero().flatten()  # in most rows there is no sample
    furthest = torch.full((len(keys),), -torch.inf, dtype=torch.float64)
    # Of all that a row holds: the first ones may be infinite, which counts for nothing.
    furthest[held] = _deviations(keys[held], center[held], unit[held]).amax(1)
    best, start = [], 0
    for size in sizes:  # what is in no such row has as many before it
        rows = furthest[start : start + 2 * size]
        best.append(rows.topk(min(len(rows), wanted)).indices + start)
        start += 2 * size
    chosen = torch.cat(best)
    far, samples = _deviations(keys[chosen], center[chosen], unit[chosen]), samples_of(keys[chosen])
    channels = torch.cat([torch.arange(size) for size in sizes for _ in range(2)])[chosen]
    lengths = [len(rows) for rows in best]
    parts = zip(*(torch.split(t, lengths) for t in (far, samples, channels)), strict=True)
    return [_ranked(away, numbers, of, wanted, count) for away, numbers, of in parts]


def _ranked(far: Tensor, samples: Tensor, channels: Tensor, wanted: int, count: int) -> list[tuple[int, int, float]]:
    """The first of these elements, (rows, k), each sample once."""
    far = far.flatten()
    order = far.topk(min(len(far), wanted)).indices
    rows, indices = channels[order // KEPT], samples.flatten()[order]
    found: dict[int, tuple[int, int, float]] = {}
    for index, channel, score in zip(indices.tolist(), rows.tolist(), far[order].tolist(), strict=True):
        if index >= 0 and score > 0 and index not in found:
            found[index] = (index, channel, score)
            if len(found) == count:
                break
    return list(found.values())


def _of_one_class(kinds: Tensor, beyond: Tensor, frequency: Tensor) -> int:
    """How many rows are mostly of one class, and not by chance: by the tail of the binomial distribution."""
    number = torch.zeros(len(kinds), len(frequency), dtype=torch.int64).scatter_add_(1, kinds, beyond.long())
    most, kind = number.max(1)
    fired = beyond.sum(1)
    steps = torch.arange(beyond.shape[1] + 1, dtype=torch.float64)
    n, p = fired.double().unsqueeze(1), frequency[kind].unsqueeze(1).clamp(1e-12, 1 - 1e-12)
    logs = torch.lgamma(n + 1) - torch.lgamma(steps + 1) - torch.lgamma((n - steps).clamp_min(0) + 1)
    mass = torch.where(steps <= n, (logs + steps * p.log() + (n - steps) * (1 - p).log()).exp(), 0)
    tail = torch.where(steps >= most.unsqueeze(1), mass, 0).sum(1)
    return int(((fired >= FEW) & (most >= MAJORITY * fired) & (tail < CHANCE)).sum())

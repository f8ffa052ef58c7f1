"""`Profile`: the four moments and a histogram of every channel, in one pass; quantiles and tails with known errors."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from normsmith.cells import cut
from normsmith.doctor._describe import Extremes, checked, describe, in_kernels, no_facts, pass_over
from normsmith.doctor.grid import BINS, Grid, edges, fitting, places
from normsmith.doctor.moments import FourMoments

if TYPE_CHECKING:
    from normsmith.kernels.cpu.describe import Pass

FIRST = 1024  # elements of a channel, of all samples of the first batch, that decide on its grid
PERCENTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
FULL = 2**31 - 1  # what an int32 tally can hold


class Between(NamedTuple):
    """An estimate from a histogram, and the bounds between which the exact value lies."""

    value: Tensor
    low: Tensor
    high: Tensor


class Profile:
    """Moments and histogram of every channel, 1.8 kB each. The first batch decides on the grid of a channel's bins, see `grid.py`.

    Tallies are exact. Two profiles on the same grid merge exactly; `fresh()` makes one on this grid. Otherwise elements of the second
    are moved by less than one of its bins; `blur`, (C,), says by how many of this one's at most, and the bounds allow for it.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.channels = channels
        self.moments = FourMoments(channels, device)
        self.tallies = torch.zeros((channels, BINS), dtype=torch.int32, device=device)
        self.grid = Grid(*torch.zeros((2, channels), dtype=torch.float64, device=device))
        self.blur = torch.zeros(channels, dtype=torch.int64, device=device)
        self._open = True  # whether a channel may still be without a scale
        self._held = 0  # elements a channel at most
        self._pass: Pass | None = None  # the last one, which may do again

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses, which are good for these tensors only, not for copies."""
        return vars(self) | {"_pass": None}

    def close(self) -> None:
        """Let go of what only a further batch would need; it may come all the same."""
        self._pass = None

    def fresh(self) -> "Profile":
        """An empty profile on this one's grid."""
        empty = Profile(self.channels, self.tallies.device)
        empty.grid, empty._open = self.grid, self._open
        return empty

    def add(self, x: Tensor) -> Extremes:
        """Add a batch of shape (N, C, ...); the extremes of its cells, which the pass finds too, and which are good until the next."""
        x = checked(x, self.channels, "Profile")
        if self._pass is None or not self._pass.takes(x) or not in_kernels(x):
            self._pass = None
            if x.device != self.tallies.device:
                self._restore([t.to(x.device) for t in self.state()])
        self._make_room(x.numel() // max(self.channels, 1))
        if self._open and not bool(self.moments.count.any()):
            self._begin(cut(x))
        return self._add_late(cut(x)) if self._open else self._add(x)

    def _begin(self, x: Tensor) -> None:
        """Choose grids by some elements of the first batch."""
        first = FourMoments(self.channels, x.device)
        step = max(x.shape[0] * x.shape[2] // FIRST, 1) | 1  # odd, or it would keep to one column of a map
        describe(x[:, :, ::step], first.facts)
        self._settle(first, x.dtype)

    def _add(self, x: Tensor) -> Extremes:
        """Add x on grids that are settled."""
        if self._pass is None:
            self._pass = pass_over(x, self.moments.facts, self.tallies, self.grid)
        return describe(x, self.moments.facts, self.tallies, self.grid) if self._pass is None else Extremes(*self._pass(x))

    def _add_late(self, x: Tensor) -> Extremes:
        """Add x where channels may have got a scale only by it: their tallies are made anew."""
        before = self.moments.count.clone()
        extremes = describe(x, self.moments.facts, self.tallies, self.grid)
        values, std = self.grid.center, self.moments.std
        late = ((self.grid.scale == 0) & (self.moments.count > 0) & ((std > 0) | (before == 0))).nonzero().flatten()
        self._settle(self.moments, x.dtype)
        if len(late):  # their last batch was tallied without a scale, and before it they had one value or none
            part, grid, tallies = x[:, late], Grid(*(t[late] for t in self.grid)), torch.zeros_like(self.tallies[late])
            bins = places(values[late].to(x.dtype).unsqueeze(1), grid)
            tallies.scatter_(1, bins, before[late].to(tallies.dtype).unsqueeze(1))
            describe(part, no_facts(len(late), x.device), tallies, grid)
            self.tallies[late] = tallies
        return extremes

    def _make_room(self, elements: int) -> None:
        self._held += elements
        if self._held > FULL and self.tallies.dtype == torch.int32:
            self.tallies, self._pass = self.tallies.long(), None

    def _settle(self, seen: FourMoments, dtype: torch.dtype) -> None:
        """Give a grid to the channels that have more than one value in what was seen; of those with one it is the center."""
        ready = (self.grid.scale == 0) & (seen.count > 0)
        found = fitting(seen.mean, seen.std, dtype)
        center, scale = (torch.where(ready, new, old) for new, old in zip(found, self.grid, strict=True))
        self.grid, self._open = Grid(center, scale), bool((scale == 0).any())

    def merge(self, other: "Profile") -> "Profile":
        """The profile of the elements of both, on this one's grid where it has one."""
        other = other.to(self.tallies.device)
        merged = Profile(self.channels, self.tallies.device)
        merged.moments = self.moments.merge(other.moments)
        scale = torch.where(self.grid.scale > 0, self.grid.scale, other.grid.scale)
        ours = (self.grid.scale > 0) | ((other.grid.scale == 0) & (self.moments.count > 0))
        center = torch.where(ours, self.grid.center, other.grid.center)
        # Two channels of one value each, but not the same, have a scale only now.
        apart = (scale == 0) & (merged.moments.std > 0)
        found = fitting(merged.moments.mean, merged.moments.std, torch.float64)
        merged.grid = Grid(torch.where(apart, found.center, center), torch.where(apart, found.scale, scale))
        parts = [part._on(merged.grid) for part in (self, other)]
        tallies, blur = (torch.stack(values) for values in zip(*parts, strict=True))
        merged._restore([merged.moments.facts, tallies.sum(0), *merged.grid, blur.amax(0)])
        return merged

    def _on(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tallies and blur on another grid."""
        tallies, blur = self.tallies.long(), self.blur.clone()
        same = (grid.center == self.grid.center) & (grid.scale == self.grid.scale)
        other = (~same & (self.moments.count > 0)).nonzero().flatten()
        if len(other):
            part = Grid(grid.center[other], grid.scale[other])
            borders = edges(part, self.moments.low[other], self.moments.high[other])
            moved, moved_blur = self._rebinned(borders, other)
            # Where there is one value, it is known.
            alone, bins = self.grid.scale[other] == 0, places(self.moments.mean[other].unsqueeze(1), part)
            exact = torch.zeros_like(moved).scatter_(1, bins, self.moments.count[other].long().unsqueeze(1))
            tallies[other] = torch.where(alone.unsqueeze(1), exact, moved)
            blur[other] = torch.where(alone, 0, moved_blur)
        return tallies, blur

    def _rebinned(self, borders: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Tallies of some channels in other bins, and by how many of those an element may be displaced."""
        tallies, source = self.tallies[channels].long(), self.edges()[channels]
        cumulated = self.cumulated(borders, channels).round().long()
        cumulated[:, 0], cumulated[:, -1] = 0, tallies.sum(1)  # also where there is one value
        bins, blur = torch.arange(BINS, device=source.device), self.blur[channels].unsqueeze(1)
        low = source.gather(1, (bins - blur).clamp_min(0))
        high = source.gather(1, (bins + 1 + blur).clamp_max(BINS))
        across = torch.searchsorted(borders, high) - torch.searchsorted(borders, low, right=True)
        return cumulated.diff(dim=1), torch.where(tallies > 0, across.clamp_min(0), 0).amax(1)

    def to(self, device: torch.device) -> "Profile":
        """The same on another device."""
        return self if device == self.tallies.device else self.restored([t.to(device) for t in self.state()])

    def state(self) -> list[Tensor]:
        """The tensors that are all there is to it."""
        return [self.moments.facts, self.tallies.long(), *self.grid, self.blur]

    def restored(self, state: list[Tensor]) -> "Profile":
        """A stream like this one with that state."""
        profile = Profile(self.channels, state[0].device)
        profile._restore(state)
        return profile

    def _restore(self, state: list[Tensor]) -> None:
        facts, tallies, center, scale, self.blur = state
        self._pass = None
        self.moments, self.grid = FourMoments.of(facts), Grid(center, scale)
        self._held = int(tallies.sum(1).amax().item()) if self.channels else 0
        self.tallies = tallies.to(torch.int64 if self._held > FULL else torch.int32, copy=True).contiguous()
        self._open = bool((scale == 0).any())

    def edges(self) -> Tensor:
        """The borders of the bins, (C, bins + 1), clamped to the extremes of the data."""
        return edges(self.grid, self.moments.low, self.moments.high)

    def cumulated(self, values: Tensor, channels: Tensor | None = None) -> Tensor:
        """About how many elements are below each of these values, (C, K): exact at borders of bins, in between a straight line.

        At the least element none, at the greatest all.
        """
        borders, sums = self.edges(), _sums(self.tallies)
        if channels is not None:
            borders, sums = borders[channels], sums[channels]
        at = torch.searchsorted(borders, values.contiguous(), right=True).clamp(1, BINS)
        left, right = borders.gather(1, at - 1), borders.gather(1, at)
        wide = right > left
        part = torch.where(wide, (values - left) / torch.where(wide, right - left, 1), 0).clamp(0, 1)
        before, after = sums.gather(1, at - 1), sums.gather(1, at)
        inside = torch.where(values > borders[:, :1], before + part * (after - before), 0)
        return torch.where(values < borders[:, -1:], inside, sums[:, -1:])

    def quantiles(self, fractions: tuple[float, ...] = PERCENTILES) -> Between:
        """The values below which these fractions lie, (C, K); the bounds are the borders of a bin, (1 + |z|) / 32 scales apart.

        The exact value is the element of rank fraction * (count - 1), rounded down. NaN for a channel without elements.
        """
        borders, sums = self.edges(), _sums(self.tallies)
        count = self.moments.count.unsqueeze(1)
        rank = torch.as_tensor(fractions, dtype=torch.float64, device=borders.device) * (count - 1).clamp_min(0)
        at = torch.searchsorted(sums, rank.floor(), right=True).clamp(1, BINS)
        before, held = sums.gather(1, at - 1), (sums.gather(1, at) - sums.gather(1, at - 1)).clamp_min(1)
        low, high = borders.gather(1, at - 1), borders.gather(1, at)
        value = low + ((rank - before + 0.5) / held).clamp(0, 1) * (high - low)
        value = torch.where(rank == 0, borders[:, :1], torch.where(rank == count - 1, borders[:, -1:], value))
        blur = self.blur.unsqueeze(1)
        least, most = (at - 1 - blur).clamp_min(0), (at + blur).clamp_max(BINS)
        low, high = borders.gather(1, least), borders.gather(1, most)
        return Between(*(torch.where(count > 0, t, torch.nan) for t in (value, low, high)))

    def below(self, values: Tensor) -> Between:
        """How many elements are below each of these values, (C, K); in between two borders of a tail, a straight line of logarithms."""
        return self._outside(values, _sums(self.tallies), self.edges())

    def above(self, values: Tensor) -> Between:
        """How many elements are above each of these values, (C, K)."""
        return self._outside(-values, _sums(self.tallies.flip(1)), -self.edges().flip(1))

    def _outside(self, values: Tensor, sums: Tensor, borders: Tensor) -> Between:
        at = torch.searchsorted(borders, values.contiguous()).clamp(1, BINS)
        left, right = borders.gather(1, at - 1), borders.gather(1, at)
        wide = right > left
        part = torch.where(wide, (values - left) / torch.where(wide, right - left, 1), 0).clamp(0, 1)
        before, after = sums.gather(1, at - 1), sums.gather(1, at)
        # Tails fall about exponentially, so their logarithm is what a straight line fits.
        curved = before.clamp_min(1) * (after / before.clamp_min(1)).clamp_min(1) ** part
        value = torch.where(before > 0, torch.where(after > before, curved, before), part * after)
        blur = self.blur.unsqueeze(1)
        least, most = (at - 1 - blur).clamp_min(0), (at + blur).clamp_max(BINS)
        found = (value, sums.gather(1, least), sums.gather(1, most))
        none, all_of_them = values < borders[:, :1], values > borders[:, -1:]
        return Between(*(torch.where(none, 0, torch.where(all_of_them, sums[:, -1:], t)) for t in found))

    def pooled(self, *, standardized: bool = False) -> "Profile":
        """One histogram of all channels, of each brought to mean 0 and variance 1 if `standardized`; moved by less than a bin."""
        moments = self.moments.standardized() if standardized else self.moments
        pool = Profile(1, self.tallies.device)
        pool.moments = moments.pooled()
        pool.grid = fitting(pool.moments.mean, pool.moments.std, torch.float64)
        used = (moments.count > 0).nonzero().flatten()
        borders = edges(pool.grid, pool.moments.low, pool.moments.high).expand(self.channels, -1)[used]
        if standardized:
            borders = torch.addcmul(self.moments.mean[used].unsqueeze(1), borders, self.moments.std[used].unsqueeze(1))
        tallies, blur = self._rebinned(borders, used)
        every = blur.amax(0, keepdim=True) if len(used) else self.blur.new_zeros(1)
        pool._restore([pool.moments.facts, tallies.sum(0, keepdim=True), *pool.grid, every])
        return pool


def _sums(tallies: Tensor) -> Tensor:
    """How many elements are below every border, float64."""
    return torch.nn.functional.pad(tallies.long().cumsum(1), (1, 0)).double()

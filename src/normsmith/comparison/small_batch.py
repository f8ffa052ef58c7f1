"""`falls`: which normalizers do worse at small batches than the others do.

A score at batch 2 and one at batch 32 differ for every normalizer: there are more updates in an epoch, and noisier ones. So what is asked
is how far a normalizer is ahead of the median of the others, at either size, seed by seed; and how much of that it loses on the way to the
smaller one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from normsmith.comparison.inference import Interval, holm, is_clear, p_value, t_interval
from normsmith.comparison.settings import Group, Setting


@dataclass(frozen=True)
class Fall:
    """What a normalizer loses against the others from the largest batch to a smaller one; below zero is a loss."""

    small: Setting
    large: Setting
    normalizer: str
    by_seed: dict[int, float]
    mean: float
    interval: Interval | None
    p: float | None
    corrected: float | None  # for all falls
    clear: bool
    accuracy: tuple[float, float]  # its own, at the small and the large batch
    others: tuple[float, float]  # of the median of the others


def falls(groups: Sequence[Group]) -> list[Fall]:
    """Of every normalizer, from the largest batch of a family to each smaller one."""
    families: dict[Setting, list[Group]] = {}
    for group in groups:
        families.setdefault(group.setting.family, []).append(group)
    found = []
    for family in families.values():
        *smaller, large = sorted(family, key=lambda g: (g.setting.statistics_batch, g.setting.batch))
        for small in smaller:
            found += [(small, large, name, pairs) for name in sorted(small.rows) if (pairs := _pairs(small, large, name))]
    values = [[seed.fall for seed in pairs.values()] for _, _, _, pairs in found]
    corrected = holm([p_value(v) for v in values])
    return [
        Fall(
            small.setting,
            large.setting,
            name,
            {seed: of.fall for seed, of in pairs.items()},
            fmean(v),
            t_interval(v),
            p_value(v),
            p,
            is_clear(v, p),
            (fmean(of.small for of in pairs.values()), fmean(of.large for of in pairs.values())),
            (fmean(of.others_small for of in pairs.values()), fmean(of.others_large for of in pairs.values())),
        )
        for (small, large, name, pairs), v, p in zip(found, values, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Seed:
    small: float
    large: float
    others_small: float
    others_large: float

    @property
    def fall(self) -> float:
        return (self.small - self.others_small) - (self.large - self.others_large)


def _pairs(small: Group, large: Group, name: str) -> dict[int, _Seed]:
    """Of every seed that this normalizer and some other have at both sizes."""
    at_small, at_large = ({n: g.scores(n) for n in g.rows} for g in (small, large))
    found = {}
    for seed, score in at_small[name].items():
        both = [n for n in at_small if n != name and seed in at_small[n] and seed in at_large.get(n, {})]
        if both and seed in at_large.get(name, {}):
            medians = (median(scores[n][seed] for n in both) for scores in (at_small, at_large))
            found[seed] = _Seed(score, at_large[name][seed], *medians)
    return found

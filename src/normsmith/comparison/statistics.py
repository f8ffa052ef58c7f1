"""`judge`: what trials say about normalizers: every seed, paired differences to a baseline, ranks, cost; and no more than that.

A setting is judged on its own: settings are no sample of anything, so nothing is averaged over them; `Statistics.wins` counts them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from normsmith.comparison.costs import Cost, cost
from normsmith.comparison.inference import (
    Interval,
    bootstrap_interval,
    detectable,
    holm,
    is_clear,
    p_value,
    seeds_needed,
    spread,
    t_interval,
)
from normsmith.comparison.settings import Group, Setting, counted, group, shortened
from normsmith.comparison.small_batch import Fall, falls


@dataclass(frozen=True)
class Entry:
    """A normalizer in a setting."""

    setting: Setting
    normalizer: str
    scores: Mapping[int, float]  # the accuracy of every seed
    mean: float | None
    deviation: float | None  # between seeds
    interval: Interval | None  # of the mean, Student's t
    rank: int | None  # by the mean
    ranks: tuple[int, int] | None  # those that cannot be ruled out: only who is clearly better or worse counts
    diverged: tuple[int, ...]  # seeds; they count, with the accuracy they came to
    missing: Mapping[int, str]  # seeds of others that it has no accuracy of, and why
    cost: Cost


@dataclass(frozen=True)
class Difference:
    """A normalizer beside the baseline in a setting, seed by seed."""

    setting: Setting
    normalizer: str
    by_seed: Mapping[int, float]
    mean: float
    deviation: float | None
    interval: Interval | None  # 95 %, Student's t: of this difference alone
    bootstrap: Interval | None  # 95 %, resampled
    p: float | None
    corrected: float | None  # for all differences of all settings, by Holm
    clear: bool  # both the corrected test and the bootstrap leave out zero
    detectable: float | None  # the smallest difference that so many seeds would find
    needed: int | None  # seeds that would find a difference of this size


@dataclass(frozen=True)
class Wins:
    """In how many settings of a batch size a normalizer is clearly better than the baseline, clearly worse, or neither."""

    size: str
    normalizer: str
    wins: int
    losses: int
    ties: int


@dataclass(frozen=True)
class Statistics:
    """All that is said about some trials."""

    baseline: str
    settings: tuple[Setting, ...]
    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...]
    falls: tuple[Fall, ...]
    notes: tuple[str, ...]

    @property
    def tests(self) -> int:
        """How many differences were tested, which is what is corrected for."""
        return sum(d.p is not None for d in self.differences)

    def of(self, setting: Setting) -> tuple[list[Entry], list[Difference]]:
        """What there is of a setting, the best first."""
        entries = [e for e in self.entries if e.setting == setting]
        return entries, [d for d in self.differences if d.setting == setting]

    def wins(self) -> list[Wins]:
        """By batch size and normalizer."""
        found: dict[tuple[str, str], list[int]] = {}
        for d in sorted(self.differences, key=lambda d: (d.setting.statistics_batch, d.setting.batch, d.normalizer)):
            counts = found.setdefault((d.setting.size, d.normalizer), [0, 0, 0])
            counts[2 if not d.clear else 0 if d.mean > 0 else 1] += 1
        return [Wins(size, normalizer, *counts) for (size, normalizer), counts in found.items()]


def judge(trials: pl.DataFrame, baseline: str) -> Statistics:
    """The statistics of the trials of `Results`, differences taken to the normalizer called `baseline`."""
    groups, notes = group(trials)
    entries = [entry for g in groups for entry in _entries(g, baseline)]
    return Statistics(
        baseline,
        tuple(g.setting for g in groups),
        tuple(entries),
        tuple(_differences(groups, baseline)),
        tuple(falls(groups)),
        (*notes, *_left_out(entries)),
    )


def _entries(group: Group, baseline: str) -> list[Entry]:
    """The normalizers of a setting, the best first."""
    scores = {name: group.scores(name) for name in group.rows}
    means = {name: float(np.mean(list(of.values()))) for name, of in scores.items() if of}
    ranks = _ranks(group, list(means))
    ordered = sorted(group.rows, key=lambda name: (name not in means, -means.get(name, 0.0), name))
    found = []
    for name in ordered:
        values = list(scores[name].values())
        rank = 1 + sum(mean > means[name] for mean in means.values()) if name in means else None
        diverged = tuple(seed for seed, row in sorted(group.rows[name].items()) if row["status"] == "diverged")
        summary = (means.get(name), spread(values), t_interval(values), rank, ranks.get(name))
        missing = group.missing(name)
        found.append(Entry(group.setting, name, scores[name], *summary, diverged, missing, cost(group, name, baseline)))
    return found


def _ranks(group: Group, names: list[str]) -> dict[str, tuple[int, int]]:
    """The ranks that all pairs of a setting, tested and corrected together, do not rule out."""
    pairs = list(combinations(names, 2))
    differences = [list(group.differences(*pair).values()) for pair in pairs]
    best, worst = dict.fromkeys(names, 1), dict.fromkeys(names, len(names))
    for (one, other), values, p in zip(pairs, differences, holm([p_value(v) for v in differences]), strict=True):
        if is_clear(values, p):
            better, lesser = (one, other) if np.mean(values) > 0 else (other, one)
            best[lesser] += 1
            worst[better] -= 1
    return {name: (best[name], worst[name]) for name in names}


def _differences(groups: list[Group], baseline: str) -> list[Difference]:
    pairs = [(g, name, g.differences(name, baseline)) for g in groups for name in sorted(g.rows) if name != baseline]
    pairs = [(g, name, by_seed) for g, name, by_seed in pairs if by_seed]
    corrected = holm([p_value(list(by_seed.values())) for _, _, by_seed in pairs])
    tests = sum(p is not None for p in corrected)
    return [_difference(*pair, p, tests) for pair, p in zip(pairs, corrected, strict=True)]


def _difference(group: Group, name: str, by_seed: dict[int, float], corrected: float | None, tests: int) -> Difference:
    values = list(by_seed.values())
    mean, deviation = float(np.mean(values)), spread(values)
    return Difference(
        group.setting,
        name,
        by_seed,
        mean,
        deviation,
        t_interval(values),
        bootstrap_interval(values),
        p_value(values),
        corrected,
        is_clear(values, corrected),
        detectable(deviation, len(values), tests),
        seeds_needed(mean, deviation, tests),
    )


def _left_out(entries: list[Entry]) -> list[str]:
    """What counts although it went wrong, and what does not count, by name."""
    diverged = [_where(e, seed) for e in entries for seed in e.diverged if seed in e.scores]
    missing: dict[str, list[str]] = {}
    for e in entries:
        for seed, why in e.missing.items():
            missing.setdefault(why, []).append(_where(e, seed))
    notes = [f"{counted(len(of), 'trial')} left out, {why}: {shortened(of)}" for why, of in missing.items()]
    if diverged:
        few = shortened(diverged)
        notes.insert(0, f"{counted(len(diverged), 'trial')} diverged, counted with the accuracy they came to: {few}")
    return notes


def _where(entry: Entry, seed: int) -> str:
    at = f"{entry.setting.dataset}, {entry.setting.model}"
    return f"{entry.normalizer} at batch {entry.setting.size}, seed {seed} ({at})"


def plain(value: Any) -> Any:
    """Settings, statistics and whatever they are made of as plain data; numbers that JSON does not know are None."""
    if isinstance(value, Setting):
        return value.to_dict()
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value

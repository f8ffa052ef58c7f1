"""What statistics come to, in sentences: a winner where there is one, and where there is none, what it would take to name one."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from normsmith.comparison.inference import ALPHA, MOST_SEEDS, POWER
from normsmith.comparison.settings import Setting, counted, titles
from normsmith.comparison.small_batch import Fall
from normsmith.comparison.statistics import Difference, Entry, Statistics
from normsmith.trials.labels import spoken

_MOST_FALLS = 5
_MOST_NAMES = 6  # of a list in a sentence


@dataclass(frozen=True)
class Verdict:
    """On one setting."""

    setting: Setting
    winner: str | None  # clear of every other
    better: tuple[str, ...]  # clearly better than the baseline
    worse: tuple[str, ...]
    text: str


def verdicts(statistics: Statistics) -> list[Verdict]:
    """One for each setting."""
    return [_verdict(statistics, setting) for setting in statistics.settings]


def _verdict(statistics: Statistics, setting: Setting) -> Verdict:
    entries, differences = statistics.of(setting)
    ranked = [e for e in entries if e.mean is not None]
    winner = ranked[0].normalizer if len(ranked) > 1 and ranked[0].ranks == (1, 1) else None
    better = tuple(d.normalizer for d in differences if d.clear and d.mean > 0)
    worse = tuple(d.normalizer for d in differences if d.clear and d.mean < 0)
    parts = [_who_wins(ranked, winner)]
    if len(ranked) > 1:
        parts += _beside_baseline(statistics.baseline, ranked, differences)
    return Verdict(setting, winner, better, worse, " ".join(parts))


def _who_wins(ranked: list[Entry], winner: str | None) -> str:
    if not ranked:
        return "No accuracy, no verdict."
    best = ranked[0]
    if len(ranked) == 1:
        return f"Only {spoken(best.normalizer)} has results: nothing to compare."
    if winner:
        return f"{spoken(winner)} is the best, {percent(best.mean)}, clear of every other."
    best_name = spoken(best.normalizer)
    rivals = [spoken(e.normalizer) for e in ranked[1:] if e.ranks is not None and e.ranks[0] == 1]
    if max(len(e.scores) for e in ranked) < 2:
        return f"No winner: {best_name} has the highest score, of one seed, which says nothing about the next; run at least 3."
    if not rivals:
        return f"No winner: {best_name} has the highest mean, {percent(best.mean)}, and is not clear of all others."
    return f"No winner: {best_name} has the highest mean, {percent(best.mean)}, and cannot be told from {listed(rivals)}."


def _beside_baseline(baseline: str, ranked: list[Entry], differences: list[Difference]) -> list[str]:
    if not differences:
        return [f"No seed of {spoken(baseline)} to compare with."]
    tested = [d for d in differences if d.p is not None]
    if not tested:
        return []
    parts = []
    for word, sign in (("better", 1), ("worse", -1)):
        clear = sorted((d for d in tested if d.clear and d.mean * sign > 0), key=lambda d: -abs(d.mean))
        if clear:
            parts.append(f"Clearly {word} than {spoken(baseline)}: {listed(_with_size(d) for d in clear)}.")
    if not parts:
        parts.append(f"No difference to {spoken(baseline)} is clear of zero.")
    alone = [spoken(d.normalizer) for d in tested if not d.clear and d.p is not None and d.p <= ALPHA]
    if alone:
        parts.append(f"Clear if it were the only one tested, not after correction: {listed(alone)}.")
    return [*parts, *_what_it_takes([d for d in tested if not d.clear])]


def _what_it_takes(unclear: Sequence[Difference]) -> list[str]:
    """For the largest difference that is not clear: how many seeds would show it, and what those there are can show."""
    largest = max(unclear, key=lambda d: abs(d.mean), default=None)
    if largest is None or largest.mean == 0:
        return []
    size = len(largest.by_seed)
    seeds = f"about {max(largest.needed, size + 1)}" if largest.needed is not None else f"more than {MOST_SEEDS}"
    text = (
        f"The largest that is not clear, {spoken(largest.normalizer)} {points(largest.mean)}, would take {seeds} seeds to show"
    )
    if largest.detectable is not None:
        least = (
            f"differences of {points(largest.detectable, sign=False)} or more"
            if largest.detectable < 1
            else "none, however large"
        )
        text += f"; the {size} at hand show {least}"
    return [f"{text} (with a chance of {100 * POWER:.0f} %)."]


def summary(statistics: Statistics) -> list[str]:
    """On everything."""
    found = verdicts(statistics)
    names = titles(statistics.settings)
    lines = [verdict.text for verdict in found] if len(found) == 1 else _overall(statistics, found)
    lines += [_fall(fall, names) for fall in _worth_telling(statistics.falls)]
    crowd = sum(bool(e.diverged) for e in statistics.entries)
    if crowd:
        lines.append(
            f"{counted(sum(len(e.diverged) for e in statistics.entries), 'trial')} diverged: {listed(_who(statistics))}."
        )
    return lines


def _who(statistics: Statistics) -> list[str]:
    return [f"{spoken(e.normalizer)} at batch {e.setting.size} ({len(e.diverged)})" for e in statistics.entries if e.diverged]


def _overall(statistics: Statistics, found: list[Verdict]) -> list[str]:
    lines = []
    winners = {verdict.winner for verdict in found}
    if len(winners) == 1 and None not in winners:
        lines.append(f"{spoken(str(found[0].winner))} is the best in every setting.")
    elif winners == {None}:
        lines.append("No winner: in no setting is the best clear of every other.")
    else:
        each = [f"{spoken(v.winner)} at batch {v.setting.size}" for v in found if v.winner]
        lines.append(f"No normalizer is the best in every setting; clear of every other is {listed(dict.fromkeys(each))}.")
    clear = [d for d in statistics.differences if d.clear]
    if statistics.tests:
        better = sum(d.mean > 0 for d in clear)
        tested = counted(statistics.tests, "difference")
        lines.append(
            f"Of {tested} to {spoken(statistics.baseline)}, {better} are clearly better and {len(clear) - better} clearly worse, "
            "corrected for all of them."
        )
    return lines + _what_it_takes([d for d in statistics.differences if not d.clear and d.p is not None])


def _worth_telling(falls: Sequence[Fall]) -> list[Fall]:
    """Losses, the largest first, that are clear, or would be if they were alone."""
    losses = [f for f in falls if f.mean < 0 and f.p is not None and f.p <= ALPHA]
    return sorted(losses, key=lambda f: (not f.clear, f.mean))[:_MOST_FALLS]


def _fall(fall: Fall, names: dict[Setting, str]) -> str:
    where = f" ({names[fall.small.family]})" if len(names) > 1 else ""
    own, others = (f"{percent(pair[1])} to {percent(pair[0])}" for pair in (fall.accuracy, fall.others))
    text = (
        f"{spoken(fall.normalizer)} {_verb(fall)} at batch {fall.small.size}{where}: from batch {fall.large.size} it goes from {own}, "
        f"the median of the others from {others}; that is {points(fall.mean)}"
    )
    if fall.interval is not None:
        text += f" ({points(fall.interval[0], unit=False)} to {points(fall.interval[1], unit=False)})"
    return text + ("." if fall.clear else f" in {counted(len(fall.by_seed), 'seed')}, clear alone but not after correction.")


def _verb(fall: Fall) -> str:
    """Who is still ahead of the others does not suffer, nor does who only gains less."""
    if fall.accuracy[0] >= fall.others[0]:
        return "loses of its lead"
    return "suffers" if fall.accuracy[0] < fall.accuracy[1] else "gains less than the others"


def _with_size(difference: Difference) -> str:
    text = f"{spoken(difference.normalizer)} {points(difference.mean)}"
    if difference.interval is None:
        return text
    low, high = difference.interval
    return f"{text} ({points(low, unit=False)} to {points(high, unit=False)})"


def percent(score: float | None) -> str:
    """An accuracy as it is shown."""
    return "" if score is None else f"{100 * score:.1f} %"


def unbroken(text: str) -> str:
    """With numbers and their units on one line."""
    return re.sub(r"(?<=\d) (?=%|points\b|seeds?\b)", "\u00a0", text)


def points(difference: float, *, unit: bool = True, sign: bool = True) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * difference:{'+' if sign else ''}.1f}{' points' if unit else ''}"


def listed(names: Iterable[str]) -> str:
    """One, two and three; of many the first few."""
    *most, last = names
    if len(most) > _MOST_NAMES:
        most, last = most[:_MOST_NAMES], f"{len(most) + 1 - _MOST_NAMES} more"
    return f"{', '.join(most)} and {last}" if most else last

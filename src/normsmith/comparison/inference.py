"""What a handful of seeds can say: intervals, tests, correction, and what it would take to say more. Numbers in, numbers out.

Everything is about paired differences: one number per seed, the score of one normalizer less that of another.

- The test is Student's t on the differences, and so is the interval; they agree: p < 0.05 just where the 95 % interval leaves out zero. At
  3 to 5 seeds nothing can be had without a distribution: a sign-flip test of n seeds has no p below 2^(1-n), 0.25 at 3 seeds and 0.06 at 5;
  and a bootstrap of n values never leaves their range, which covers a median with a chance of 1 - 2^(1-n), 75 % at 3 seeds.
- The bootstrap stands beside it, as a check that knows no normal distribution: percentiles of `scipy.stats.bootstrap`, widened for the
  number of seeds as Hesterberg (2015) does, since plain percentiles and BCa are too narrow even at 10 seeds (docs/compare.md has what
  they cover).
- Differences without any spread have no t. What decides then is the sign-flip test.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtr, ndtr, stdtr, stdtrit

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # further than this nobody plans
_RESAMPLES = 10_000
_NO_SPREAD = 1e-9  # scores that differ by less are equal but for rounding

Values = Sequence[float] | NDArray[np.float64]
Interval = tuple[float, float]


def spread(values: Values) -> float | None:
    """The standard deviation; exactly zero where only rounding tells the values apart; None of less than two."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) if np.ptp(values) > _NO_SPREAD else 0.0


def t_interval(values: Values) -> Interval | None:
    """Where the mean is, at 95 %, if the values are about normal; None of one value, or of values without spread."""
    deviation = spread(values)
    if not deviation:
        return None
    half = float(stdtrit(len(values) - 1, 1 - ALPHA / 2)) * deviation / math.sqrt(len(values))
    center = float(np.mean(values))
    return center - half, center + half


def bootstrap_interval(values: Values) -> Interval | None:
    """Where the mean is, at 95 %, by resampling the values; None of one value.

    The percentiles taken are further out than 2.5 and 97.5: as far as Student's t is from the normal, and sqrt(n / (n - 1)) for the spread
    of resamples. At 3 and 4 values that is the range of the values, the most there is to resample.
    """
    size = len(values)
    if size < 2:
        return None
    if not spread(values):
        return float(np.min(values)), float(np.max(values))
    from scipy.stats import bootstrap  # noqa: PLC0415  (takes longer to import than all the rest)

    tail = float(ndtr(-math.sqrt(size / (size - 1)) * stdtrit(size - 1, 1 - ALPHA / 2)))
    found = bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),  # the same results give the same report
    ).confidence_interval
    return float(found.low), float(found.high)


def p_value(values: Values) -> float | None:
    """How likely a mean so far from zero is where there is none, two-sided: t, or of values without spread the sign-flip test."""
    deviation = spread(values)
    if deviation is None:
        return None
    size, center = len(values), float(np.mean(values))
    if deviation == 0:
        return 1.0 if abs(center) <= _NO_SPREAD else 2.0 ** (1 - size)
    return float(2 * stdtr(size - 1, -abs(center) / deviation * math.sqrt(size)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Each p corrected for all of them (Holm 1979), which bounds the chance of any false claim; None, which is no test, stays None."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for step, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * p))
        corrected[place] = highest
    return corrected


def is_clear(values: Values, corrected: float | None) -> bool:
    """Whether the mean is told from zero: by the corrected test, and by the bootstrap too."""
    if corrected is None or corrected > ALPHA:
        return False
    interval = bootstrap_interval(values)
    return interval is not None and not interval[0] <= 0 <= interval[1]


def detectable(deviation: float | None, size: int, tests: int) -> float | None:
    """The smallest difference that a t test of so many seeds finds with a chance of 0.8.

    At the level of the first step of Holm's correction, 0.05 / tests, which is the strictest.
    """
    if not deviation or size < 2:
        return None
    return _noncentrality(size, ALPHA / max(tests, 1)) * deviation / math.sqrt(size)


def seeds_needed(mean: float, deviation: float | None, tests: int) -> int | None:
    """How many seeds would find a difference as large and as spread as this one with a chance of 0.8; None if more than MOST_SEEDS."""
    level = ALPHA / max(tests, 1)
    if deviation is None or abs(mean) <= _NO_SPREAD:
        return None
    if deviation == 0:
        return math.ceil(1 - math.log2(level))
    low, high = 1, MOST_SEEDS + 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = _power(abs(mean) / deviation * math.sqrt(middle), middle, level) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high if high <= MOST_SEEDS else None


def _power(noncentrality: float, size: int, level: float) -> float:
    """The chance that t of so many seeds lies beyond its bound on the side of the effect; the other side adds nothing to speak of."""
    return 1 - float(nctdtr(size - 1, noncentrality, stdtrit(size - 1, 1 - level / 2)))


@cache
def _noncentrality(size: int, level: float) -> float:
    low, high = 0.0, 1.0
    while _power(high, size, level) < POWER:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, size, level) >= POWER else (middle, high)
    return high

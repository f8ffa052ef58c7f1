"""Intervals and tests against scipy and plain definitions, and against what they promise: their coverage, by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normsmith.comparison import inference
from normsmith.comparison.inference import (
    ALPHA,
    bootstrap_interval,
    detectable,
    holm,
    is_clear,
    p_value,
    seeds_needed,
    spread,
    t_interval,
)

values = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=2, max_size=12)


def plain_holm(ps):
    """By the definition: every p times the number of those that are no smaller, and no less than a smaller one has become."""
    return [max(min(1, q * sum(r >= q for r in ps)) for q in ps if q <= p) for p in ps]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_definition(ps):
    found = holm(ps)
    assert found == pytest.approx(plain_holm(ps))
    assert all(f >= p for f, p in zip(found, ps, strict=True))
    assert all(f <= min(1, len(ps) * p) + 1e-12 for f, p in zip(found, ps, strict=True)), "Bonferroni is never better"


def test_holm_of_few():
    assert holm([]) == []
    assert holm([0.04]) == [0.04]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.03, None, 0.01]) == [None, pytest.approx(0.03), None, pytest.approx(0.02)], "no test is no test"


@given(values)
def test_the_test_and_its_interval_are_those_of_scipy_and_agree(v):
    if not spread(v):
        return
    known = stats.ttest_1samp(v, 0.0)
    assert p_value(v) == pytest.approx(known.pvalue, rel=1e-6, abs=1e-12)
    low, high = t_interval(v)
    expected = known.confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    if abs(p_value(v) - ALPHA) > 1e-6:
        assert (p_value(v) < ALPHA) == (not low <= 0 <= high)


@given(values)
def test_the_other_way_round_only_the_sign_changes(v):
    turned = [-x for x in v]
    assert p_value(turned) == pytest.approx(p_value(v))
    for interval in (t_interval, bootstrap_interval):
        found = interval(v)
        assert found is None or interval(turned) == pytest.approx((-found[1], -found[0]))


def test_values_that_have_no_spread():
    for equal in ([0.1] * 3, [0.9 - 0.8, 0.8 - 0.7, 0.3 - 0.2]):  # the second differ by rounding
        assert spread(equal) == 0
        assert p_value(equal) == 0.25, "the sign-flip test of 3 seeds"
        assert t_interval(equal) is None
        assert bootstrap_interval(equal) == pytest.approx((0.1, 0.1))
        assert detectable(spread(equal), 3, 1) is None
    assert p_value([0.0] * 5) == 1
    assert p_value([0.2] * 6) == 2 / 64
    assert seeds_needed(0.2, 0.0, 1) == 6, "2^(1-6) is the first below 0.05"


def test_one_value_says_nothing():
    assert p_value([0.3]) is t_interval([0.3]) is bootstrap_interval([0.3]) is spread([0.3]) is None
    assert not is_clear([0.3], None)
    assert seeds_needed(0.3, None, 1) is None


def test_the_bootstrap_is_the_paired_one_of_scipy():
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(0.9, 0.02, 12), rng.normal(0.88, 0.02, 12)
    tail = stats.norm.cdf(-((12 / 11) ** 0.5) * stats.t.ppf(0.975, 11))
    expected = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=1 - 2 * tail,
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert bootstrap_interval(ours - theirs) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_how_far_out_the_percentiles_are():
    values = np.random.default_rng(1).normal(size=7)
    tail = stats.norm.cdf(-((7 / 6) ** 0.5) * stats.t.ppf(0.975, 6))
    rng = np.random.default_rng(0)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", confidence_level=1 - 2 * tail, n_resamples=10_000, rng=rng
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((expected.low, expected.high)), "and the same every time"


def test_the_bootstrap_of_three_is_their_range():
    assert bootstrap_interval([0.1, 0.4, 0.2]) == pytest.approx((0.1, 0.4))


def test_clear_needs_both():
    apart = [0.10, 0.11, 0.12]
    assert is_clear(apart, 0.04)
    assert not is_clear(apart, 0.06), "the corrected test"
    assert not is_clear([0.1, 0.2, -0.001], 0.01), "the bootstrap, which reaches below zero"


@given(st.integers(2, 30), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_what_can_be_detected_has_that_power(size, tests):
    effect = detectable(1.0, size, tests)
    bound = stats.t.ppf(1 - ALPHA / tests / 2, size - 1)
    assert stats.nct.sf(bound, size - 1, effect * size**0.5) == pytest.approx(0.8, abs=1e-4)
    assert detectable(2.0, size, tests) == pytest.approx(2 * effect)


@pytest.mark.parametrize("mean", [0.05, 0.2, 1.0, 4.0])
def test_the_seeds_needed_are_the_fewest(mean):
    def power(n):
        return stats.nct.sf(stats.t.ppf(1 - ALPHA / 10 / 2, n - 1), n - 1, mean * n**0.5)

    found = seeds_needed(mean, 1.0, 10)
    if found is None:
        assert power(inference.MOST_SEEDS) < 0.8
    else:
        assert power(found) >= 0.8
        assert found == 2 or power(found - 1) < 0.8


def test_the_seeds_needed_of_almost_nothing():
    assert seeds_needed(0.0, 1.0, 1) is None
    assert seeds_needed(1e-3, 1.0, 1) is None, "beyond what anyone plans"
    assert seeds_needed(-0.5, 1.0, 1) == seeds_needed(0.5, 1.0, 1)


# What docs/compare.md says of the intervals: how often the true mean lies in them.
COVERAGE = [("normal", 3, 0.95, 0.75), ("normal", 5, 0.95, 0.93), ("normal", 10, 0.95, 0.945), ("skewed", 10, 0.90, 0.91)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size", "of_t", "of_bootstrap"), COVERAGE)
def test_intervals_cover_as_often_as_the_docs_say(kind, size, of_t, of_bootstrap):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1500, size)) if kind == "normal" else rng.exponential(size=(1500, size)) - 1
    for interval, expected in ((t_interval, of_t), (bootstrap_interval, of_bootstrap)):
        found = [interval(v) for v in draws]
        covered = np.mean([low <= 0 <= high for low, high in found])
        assert covered == pytest.approx(expected, abs=0.025)


@pytest.mark.slow
def test_false_claims_are_as_rare_as_promised():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        baseline = rng.normal(size=4)
        differences = [rng.normal(size=4) - baseline for _ in range(6)]
        corrected = holm([p_value(d) for d in differences])
        wrong += any(is_clear(d, p) for d, p in zip(differences, corrected, strict=True))
    assert wrong / 1000 < ALPHA + 0.015

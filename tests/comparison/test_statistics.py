"""What is said about made-up trials whose answer is known."""

import math

import numpy as np
import pytest
from comparison.helpers_results import SPEED, fill, put
from hypothesis import given, settings
from hypothesis import strategies as st

from normsmith.comparison.results import load
from normsmith.comparison.statistics import judge

CLOSE = {"batch": [0.90, 0.91, 0.92], "group": [0.905, 0.90, 0.93], "layer": [0.91, 0.89, 0.92]}
APART = {"batch": [0.70, 0.71, 0.72], "group": [0.901, 0.91, 0.92], "layer": [0.50, 0.51, 0.521]}


def judged(path, baseline="batch"):
    return judge(load(path).trials, baseline)


def difference(statistics, normalizer):
    return next(d for d in statistics.differences if d.normalizer == normalizer)


def entry(statistics, normalizer):
    return next(e for e in statistics.entries if e.normalizer == normalizer)


def test_numbers_by_hand(tmp_path):
    fill(tmp_path, CLOSE)
    found = judged(tmp_path)
    group = difference(found, "group")
    assert group.by_seed == pytest.approx({0: 0.005, 1: -0.01, 2: 0.01})
    assert group.mean == pytest.approx(0.005 / 3)
    deviation = math.sqrt(sum((d - group.mean) ** 2 for d in (0.005, -0.01, 0.01)) / 2)
    assert group.deviation == pytest.approx(deviation)
    half = 4.302652729749464 * deviation / math.sqrt(3)
    assert group.interval == pytest.approx((group.mean - half, group.mean + half))
    assert group.bootstrap == pytest.approx((-0.01, 0.01))
    assert not group.clear
    assert group.corrected == 1.0
    assert found.tests == 2
    group = entry(found, "group")
    assert group.scores == {0: 0.905, 1: 0.90, 2: 0.93}
    assert group.mean == pytest.approx(0.911667, abs=1e-6)
    assert (group.rank, group.ranks) == (1, (1, 3))


def test_clear_differences_and_ranks(tmp_path):
    fill(tmp_path, APART)
    found = judged(tmp_path)
    assert [(e.normalizer, e.rank, e.ranks) for e in found.entries] == [
        ("group", 1, (1, 1)),
        ("batch", 2, (2, 2)),
        ("layer", 3, (3, 3)),
    ]
    assert [d.clear for d in found.differences] == [True, True]
    [group, layer] = found.wins()
    assert (group.normalizer, group.wins, group.losses, group.ties) == ("group", 1, 0, 0)
    assert (layer.normalizer, layer.wins, layer.losses, layer.ties) == ("layer", 0, 1, 0)


scores = st.fixed_dictionaries(
    {
        name: st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=4)
        for name in ("batch", "group", "layer")
    }
)


@given(scores)
@settings(max_examples=12, deadline=None)
def test_the_baseline_swapped(tmp_path_factory, given_scores):
    path = tmp_path_factory.mktemp("trials")
    fill(path, given_scores)
    one, other = difference(judged(path), "group"), difference(judged(path, "group"), "batch")
    assert other.by_seed == {seed: -value for seed, value in one.by_seed.items()}
    assert other.mean == pytest.approx(-one.mean)
    assert other.p == pytest.approx(one.p)
    for ours, theirs in ((one.interval, other.interval), (one.bootstrap, other.bootstrap)):
        assert ours is None or theirs == pytest.approx((-ours[1], -ours[0]))
    assert [(e.normalizer, e.ranks) for e in judged(path).entries] == [
        (e.normalizer, e.ranks) for e in judged(path, "group").entries
    ]


@given(scores, st.integers(-500, 500))
@settings(max_examples=12, deadline=None)
def test_the_same_added_to_all_changes_nothing(tmp_path_factory, given_scores, shift):
    before, after = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    fill(before, given_scores)
    fill(after, {name: [value + shift / 1000 for value in of] for name, of in given_scores.items()})
    for one, other in zip(judged(before).differences, judged(after).differences, strict=True):
        assert one.mean == pytest.approx(other.mean, abs=1e-9)
        assert one.p == pytest.approx(other.p, abs=1e-6)
        assert one.clear == other.clear
        assert (one.needed or 0) == pytest.approx(other.needed or 0, rel=0.02)  # rounded differently


@given(scores)
@settings(max_examples=12, deadline=None)
def test_the_order_of_trials_does_not_matter(tmp_path_factory, given_scores):
    path = tmp_path_factory.mktemp("trials")
    fill(path, given_scores)
    trials = load(path).trials
    assert judge(trials, "batch") == judge(trials.sample(fraction=1, shuffle=True, seed=1), "batch")


def test_missing_crashed_and_diverged(tmp_path):
    fill(tmp_path, {"batch": [0.9, 0.91, 0.92, 0.93]})
    put(tmp_path, "group", 0, 0.95)
    put(tmp_path, "group", 1, 0.10, status="diverged")
    put(tmp_path, "group", 2, None, status="crashed", manifest={"accuracy": 0.2})  # of an epoch before
    found = judged(tmp_path)
    group = entry(found, "group")
    assert group.scores == {0: 0.95, 1: 0.10}, "a diverged one counts"
    assert group.diverged == (1,)
    assert group.missing == {2: "crashed: RuntimeError: boom", 3: "not there"}
    assert difference(found, "group").by_seed == pytest.approx({0: 0.05, 1: -0.81})
    assert found.notes == (
        "1 trial diverged, counted with the accuracy they came to: group at batch 32, seed 1 (digits, shallow_cnn)",
        "1 trial left out, crashed: RuntimeError: boom: group at batch 32, seed 2 (digits, shallow_cnn)",
        "1 trial left out, not there: group at batch 32, seed 3 (digits, shallow_cnn)",
    )


@pytest.mark.parametrize("accuracy", [None, math.nan])
def test_diverged_without_an_accuracy(tmp_path, accuracy):
    fill(tmp_path, {"batch": [0.9, 0.91]})
    put(tmp_path, "group", 0, 0.5)
    put(tmp_path, "group", 1, accuracy, status="diverged")
    found = judged(tmp_path)
    assert entry(found, "group").missing == {1: "diverged without an accuracy"}
    assert entry(found, "group").mean == 0.5
    assert [note.partition(":")[0] for note in found.notes] == ["1 trial left out, diverged without an accuracy"]


def test_all_crashed(tmp_path):
    fill(tmp_path, {"batch": [0.9, 0.91]})
    for seed in range(2):
        put(tmp_path, "group", seed, None, status="crashed")
    found = judged(tmp_path)
    group = entry(found, "group")
    assert (group.mean, group.rank, group.ranks, group.interval) == (None, None, None, None)
    assert [e.normalizer for e in found.entries] == ["batch", "group"]
    assert found.differences == ()


def test_one_seed_is_shown_and_not_tested(tmp_path):
    fill(tmp_path, {"batch": [0.9], "group": [0.99]})
    found = judged(tmp_path)
    group = difference(found, "group")
    assert group.mean == pytest.approx(0.09)
    assert (group.interval, group.bootstrap, group.p, group.corrected, group.clear) == (None, None, None, None, False)
    assert found.tests == 0


def test_equal_in_every_seed(tmp_path):
    fill(tmp_path, {"batch": [0.9, 0.91, 0.92], "group": [0.9, 0.91, 0.92], "layer": [0.8, 0.81, 0.82]})
    found = judged(tmp_path)
    assert difference(found, "group").p == 1.0
    assert difference(found, "layer").p == 0.25
    assert not any(d.clear for d in found.differences)


def test_correction_is_over_all_settings(tmp_path):
    fill(tmp_path, CLOSE)
    alone = difference(judged(tmp_path), "group").corrected
    assert alone is not None
    values = {"batch": [0.70, 0.71, 0.72], "group": [0.75, 0.765, 0.77]}
    fill(tmp_path, values, batch=4)
    one = judged(tmp_path).differences
    fill(tmp_path, values, batch=8)
    more = judged(tmp_path).differences
    p = next(d for d in one if d.setting.batch == 4)
    assert p.corrected == pytest.approx(3 * p.p)
    q = next(d for d in more if d.setting.batch == 4)
    assert q.corrected == pytest.approx(4 * p.p)


def test_only_like_is_compared_with_like(tmp_path):
    fill(tmp_path, CLOSE)
    fill(tmp_path, CLOSE, batch=2)
    fill(tmp_path, CLOSE, batch=32, statistics_batch=4)
    fill(tmp_path, CLOSE, dataset="mnist")
    fill(tmp_path, CLOSE, learning_rate=0.1)
    fill(tmp_path, CLOSE, weight_decay=0.0)
    fill(tmp_path, CLOSE, training={"amp": True, "threads": 1, "record": []})
    fill(tmp_path, CLOSE, epochs=5)
    found = judged(tmp_path)
    assert len(found.settings) == 8
    assert len(found.differences) == 16
    assert found.notes == ()


def test_what_does_not_change_an_accuracy_does_not_separate(tmp_path):
    fill(tmp_path, {"batch": CLOSE["batch"]})
    training = {"amp": False, "threads": 2, "record": ["moments"], "device": "cpu", "keep_weights": True}
    fill(tmp_path, {"group": CLOSE["group"]}, training=training)
    assert len(judged(tmp_path).settings) == 1


def test_searched_learning_rates_are_each_its_own(tmp_path):
    for name, rate in (("batch", 0.1), ("group", 0.01)):
        for tried in (0.1, 0.01):
            put(tmp_path, name, 0, 0.5, learning_rate=tried, searching=True)
        fill(tmp_path, {name: CLOSE[name]}, learning_rate=rate)
    found = judged(tmp_path)
    [setting] = found.settings
    assert setting.learning_rate is None
    assert difference(found, "group").by_seed == pytest.approx({0: 0.005, 1: -0.01, 2: 0.01})
    assert entry(found, "batch").scores == {0: 0.9, 1: 0.91, 2: 0.92}, "the search does not count"


def test_of_two_runs_the_newer_counts(tmp_path):
    for seed in range(6):
        for source, accuracy, ended in (("1", 0.9, 10.0), ("2", 0.5, 20.0 if seed % 2 else 5.0)):
            put(tmp_path, "batch", seed, accuracy, source=source, manifest={"ended": ended})
    found = judged(tmp_path)
    assert entry(found, "batch").scores == {0: 0.9, 1: 0.5, 2: 0.9, 3: 0.5, 4: 0.9, 5: 0.5}
    [note] = found.notes
    assert note.startswith("of 6 trials there is a newer run, which counts instead: batch at batch 32, seed ")
    assert note.endswith(" and 1 more")


def test_cost_beside_the_baseline(tmp_path):
    fill(tmp_path, CLOSE, target_accuracy=0.9)
    found = entry(judged(tmp_path), "group").cost
    assert found.seconds_per_step == SPEED["group"]
    assert found.seconds_ratio == pytest.approx(1.2)
    assert found.memory_ratio == 1.0
    assert (found.reached, found.seconds_to_target) == (0, None)


def test_times_of_different_machines_are_not_compared(tmp_path):
    fill(tmp_path, {"batch": CLOSE["batch"]})
    fill(tmp_path, {"group": CLOSE["group"]}, manifest={"environment": {"machine": "there", "processor": "cpu", "source": "1"}})
    found = entry(judged(tmp_path), "group").cost
    assert found.seconds_per_step == SPEED["group"]
    assert found.seconds_ratio is found.memory_ratio is None


def test_time_to_target(tmp_path):
    for seed, seconds in enumerate((3.0, None, 5.0)):
        timing = {"timing": {"seconds": 9.0, "seconds per step": 0.1, "seconds to target": seconds}}
        put(tmp_path, "batch", seed, 0.9, target_accuracy=0.8, manifest=timing)
    found = entry(judged(tmp_path), "batch").cost
    assert (found.reached, found.seconds_to_target) == (2, 4.0)
    put(tmp_path / "b", "batch", 0, 0.9)
    assert entry(judged(tmp_path / "b"), "batch").cost.reached is None, "there was no target"


LARGE = {"batch": [0.93, 0.94, 0.935], "group": [0.93, 0.935, 0.94], "layer": [0.92, 0.935, 0.92], "rms": [0.915, 0.92, 0.93]}
SMALL = {"batch": [0.60, 0.62, 0.61], "group": [0.93, 0.94, 0.94], "layer": [0.93, 0.935, 0.92], "rms": [0.92, 0.92, 0.925]}


def test_who_suffers_at_a_small_batch(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, SMALL, batch=2)
    found = {f.normalizer: f for f in judged(tmp_path).falls}
    batch = found["batch"]
    assert (batch.small.batch, batch.large.batch) == (2, 32)
    others = [np.median([scores[n][0] for n in ("group", "layer", "rms")]) for scores in (SMALL, LARGE)]
    assert batch.by_seed[0] == pytest.approx(0.60 - others[0] - (0.93 - others[1]))
    assert batch.accuracy == pytest.approx((0.61, 0.935))
    assert [name for name, f in found.items() if f.clear] == ["batch"]


def test_a_small_batch_that_harms_all_alike_is_no_fall(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, {name: [v - 0.2 for v in values] for name, values in LARGE.items()}, batch=2)
    assert all(f.mean == pytest.approx(0) for f in judged(tmp_path).falls)
    assert not any(f.clear for f in judged(tmp_path).falls)


def test_small_statistics_in_a_large_batch(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, SMALL, batch=32, statistics_batch=2)
    [fall] = [f for f in judged(tmp_path).falls if f.clear]
    assert (fall.normalizer, fall.small.size, fall.large.size) == ("batch", "32 in parts of 2", "32")


def test_one_batch_size_or_one_normalizer_has_no_falls(tmp_path):
    fill(tmp_path, LARGE)
    assert judged(tmp_path).falls == ()
    fill(tmp_path / "b", {"batch": LARGE["batch"]})
    fill(tmp_path / "b", {"batch": SMALL["batch"]}, batch=2)
    assert judged(tmp_path / "b").falls == ()

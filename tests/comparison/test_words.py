"""The verdict: it names a winner only where one is clear, and says what else it would take."""

import pytest
from comparison.helpers_results import fill, put

from normsmith.comparison.results import load
from normsmith.comparison.statistics import judge
from normsmith.comparison.words import listed, points, summary, unbroken, verdicts

LARGE = {"batch": [0.93, 0.94, 0.935], "group": [0.93, 0.935, 0.94], "layer": [0.92, 0.935, 0.92]}
SMALL = {"batch": [0.60, 0.62, 0.61], "group": [0.93, 0.94, 0.94], "layer": [0.93, 0.935, 0.92]}


def said(path, baseline="batch"):
    statistics = judge(load(path).trials, baseline)
    return verdicts(statistics), summary(statistics)


def test_a_clear_winner(tmp_path):
    fill(tmp_path, {"batch": [0.70, 0.71, 0.72], "group": [0.901, 0.91, 0.92], "layer": [0.50, 0.51, 0.521]})
    [verdict], lines = said(tmp_path)
    assert (verdict.winner, verdict.better, verdict.worse) == ("group", ("group",), ("layer",))
    assert lines == [verdict.text]
    assert verdict.text == (
        "group is the best, 91.0 %, clear of every other. Clearly better than batch: group +20.0 points (+19.9 to +20.2). "
        "Clearly worse than batch: layer -20.0 points (-20.1 to -19.8)."
    )


def test_no_winner_and_what_it_would_take(tmp_path):
    fill(tmp_path, {"batch": [0.90, 0.91, 0.92], "group": [0.905, 0.95, 0.93]})
    [verdict], _ = said(tmp_path)
    assert (verdict.winner, verdict.better, verdict.worse) == (None, (), ())
    assert verdict.text == (
        "No winner: group has the highest mean, 92.8 %, and cannot be told from batch. No difference to batch is clear of zero. "
        "The largest that is not clear, group +1.8 points, would take about 11 seeds to show; the 3 at hand show differences of "
        "6.2 points or more (with a chance of 80 %)."
    )


def test_clear_alone_but_not_among_many(tmp_path):
    fill(tmp_path, {"batch": [0.70, 0.71, 0.72], "group": [0.75, 0.785, 0.77]})
    [alone], _ = said(tmp_path)
    assert alone.winner == "group"
    fill(tmp_path, {"layer": [0.72, 0.69, 0.71], "rms": [0.70, 0.72, 0.71], "instance": [0.71, 0.72, 0.70]})
    [among], _ = said(tmp_path)
    assert among.winner is None
    assert among.better == ()
    assert "Clear if it were the only one tested, not after correction: group." in among.text


def test_the_best_of_several_that_beat_the_baseline_stays_open(tmp_path):
    fill(tmp_path, {"batch": [0.60, 0.61, 0.62], "group": [0.90, 0.911, 0.92], "layer": [0.901, 0.91, 0.921]})
    [verdict], _ = said(tmp_path)
    assert verdict.winner is None
    assert verdict.better == ("group", "layer")
    assert "cannot be told from group." in verdict.text


def test_so_few_seeds_that_they_show_nothing(tmp_path):
    fill(tmp_path, {"batch": [0.60, 0.62], "group": [0.70, 0.90]})
    [verdict], _ = said(tmp_path)
    assert "the 2 at hand show none, however large" in verdict.text


def test_one_seed(tmp_path):
    fill(tmp_path, {"batch": [0.60], "group": [0.90]})
    [verdict], lines = said(tmp_path)
    assert verdict.winner is None
    assert lines == ["No winner: group has the highest score, of one seed, which says nothing about the next; run at least 3."]


def test_one_normalizer(tmp_path):
    fill(tmp_path, {"batch": [0.60, 0.7]})
    assert said(tmp_path)[1] == ["Only batch has results: nothing to compare."]


def test_nothing_but_crashes(tmp_path):
    put(tmp_path, "batch", 0, None, status="crashed")
    assert said(tmp_path)[1] == ["No accuracy, no verdict."]


def test_the_baseline_is_not_there(tmp_path):
    fill(tmp_path, {"batch": [0.60, 0.61], "group": [0.9, 0.93]})
    fill(tmp_path, {"layer": [0.60, 0.61], "group": [0.9, 0.93]}, batch=4)
    four, _ = said(tmp_path)[0]
    assert "No seed of batch to compare with." in four.text


def test_equal_scores(tmp_path):
    fill(tmp_path, {"batch": [0.9, 0.91, 0.92], "group": [0.9, 0.91, 0.92]})
    [verdict], _ = said(tmp_path)
    assert verdict.winner is None
    assert verdict.text.endswith("No difference to batch is clear of zero.")


def test_batch_norm_suffers_at_batch_2(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, SMALL, batch=2)
    _, lines = said(tmp_path)
    assert lines[0] == "No winner: in no setting is the best clear of every other."
    assert lines[1] == "Of 4 differences to batch, 2 are clearly better and 0 clearly worse, corrected for all of them."
    [fall] = [line for line in lines if "suffers" in line]
    assert fall.startswith(
        "batch suffers at batch 2: from batch 32 it goes from 93.5 % to 61.0 %, the median of the others from"
    )
    assert fall.endswith(").")


def test_a_fall_that_is_not_clear_is_said_to_be_so(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, {**SMALL, "batch": [0.60, 0.85, 0.70]}, batch=2)
    assert not [line for line in said(tmp_path)[1] if "suffers" in line], "not even clear alone"
    fill(tmp_path / "b", LARGE)
    fill(tmp_path / "b", {**SMALL, "batch": [0.60, 0.78, 0.65]}, batch=2)
    [fall] = [line for line in said(tmp_path / "b")[1] if "suffers" in line]
    assert fall.endswith("in 3 seeds, clear alone but not after correction.")


def test_of_two_that_part_only_one_loses(tmp_path):
    fill(tmp_path, {name: LARGE[name] for name in ("batch", "group")})
    fill(tmp_path, {name: SMALL[name] for name in ("batch", "group")}, batch=2)
    assert [line.split()[0] for line in said(tmp_path)[1] if "median of the others" in line] == ["batch"]


def test_who_is_still_ahead_or_only_gains_less_does_not_suffer(tmp_path):
    """As where nobody but batch norm has learned anything yet at the large batch."""
    chance = {"group": [0.10, 0.11, 0.10], "layer": [0.10, 0.10, 0.11]}
    fill(tmp_path / "a", {"batch": [0.86, 0.87, 0.86], **chance})
    fill(tmp_path / "a", {"batch": [0.15, 0.14, 0.16], **chance}, batch=2)
    text = " ".join(said(tmp_path / "a")[1])
    assert "batch loses of its lead at batch 2" in text
    assert "suffers" not in text
    fill(tmp_path / "b", {"batch": [0.60, 0.61, 0.60], "group": [0.60, 0.61, 0.60], "layer": [0.61, 0.60, 0.60]})
    fill(tmp_path / "b", {"batch": [0.65, 0.66, 0.65], "group": [0.90, 0.91, 0.90], "layer": [0.92, 0.90, 0.91]}, batch=2)
    text = " ".join(said(tmp_path / "b")[1])
    assert "batch gains less than the others at batch 2" in text
    assert "suffers" not in text


def test_nobody_suffers_where_all_lose_alike(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, {name: [v - 0.3 for v in values] for name, values in LARGE.items()}, batch=2)
    assert "suffers" not in " ".join(said(tmp_path)[1])


def test_a_winner_of_all_settings_and_of_some(tmp_path):
    apart = {"batch": [0.70, 0.71, 0.72], "group": [0.901, 0.91, 0.92]}
    fill(tmp_path, apart)
    fill(tmp_path, apart, dataset="mnist")
    assert said(tmp_path)[1][0] == "group is the best in every setting."
    fill(tmp_path, {"batch": [0.9, 0.91, 0.92], "group": [0.90, 0.915, 0.91]}, batch=8)
    assert said(tmp_path)[1][0] == "No normalizer is the best in every setting; clear of every other is group at batch 32."


def test_diverged_trials_are_in_the_verdict(tmp_path):
    fill(tmp_path, LARGE)
    put(tmp_path, "none", 0, 0.1, status="diverged")
    put(tmp_path, "none", 1, 0.12, status="diverged")
    lines = said(tmp_path)[1]
    assert lines[-1] == "2 trials diverged: the bare network at batch 32 (2)."
    assert "the bare network -82.5 points" in " ".join(lines)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (iter(["a", "b", "c"]), "a, b and c"),
        ("abcdefg", "a, b, c, d, e, f and g"),
        ("abcdefghij", "a, b, c, d, e, f and 4 more"),
    ],
)
def test_lists(names, text):
    assert listed(names) == text


def test_points():
    assert points(0.0312) == "+3.1 points"
    assert points(-0.5, unit=False) == "-50.0"
    assert points(0.05, sign=False) == "5.0 points"


def test_a_number_and_its_unit_stay_together():
    text = "group +1.8 points (90.0 % to 92 %), about 11 seeds in 3 more"
    assert unbroken(text) == "group +1.8\u00a0points (90.0\u00a0% to 92\u00a0%), about 11\u00a0seeds in 3 more"

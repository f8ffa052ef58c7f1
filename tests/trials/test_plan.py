"""What a recipe amounts to, and what makes two trials the same."""

import json
from dataclasses import replace

import pytest
from trials.helpers_trials import recipe, trials

from normsmith.trials.plan import Trial, after_search, plan

MAPPING = {"backbone": "frozen", "head": None}


def test_the_grid():
    found = trials(batch_sizes=[10, 20], seeds=2, normalizers=["batch", "layer", "none"], models=["mlp", "mlp_relu"])
    assert len(found) == len({t.identity for t in found}) == 2 * 2 * 3 * 2
    assert [t.seed for t in found] == sorted(t.seed for t in found), (
        "all of a seed before the next: early results cover the grid"
    )


def test_statistics_of_parts_are_never_larger_than_a_batch():
    assert {(t.batch, t.statistics_batch) for t in trials(batch_sizes=[2, 20], statistics_batch=4)} == {(2, 2), (20, 4)}


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 9},
        {"normalizer": "layer"},
        {"batch": 3},
        {"learning_rate": 1.0},
        {"searching": True},
        {"training": ()},
        {"steps": 1},
    ],
)
def test_whatever_changes_the_result_changes_the_identity(changed):
    trial = trials()[0]
    if "training" in changed:
        changed = {"training": tuple({**dict(trial.training), "clip": 2.0}.items())}
    assert replace(trial, **changed).identity != trial.identity
    assert replace(trial).identity == trial.identity


def test_the_identity_of_a_model_in_a_file_is_of_its_text(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("a = 1\n")
    one, other = (trials(models=[f"{path}:make({i})"])[0] for i in (1, 2))
    assert one.identity != other.identity
    path.write_text("a = 2\n")
    assert replace(one).identity != one.identity
    path.write_text("a = 1\n")
    assert replace(one).identity == one.identity


def test_there_and_back():
    for trial in trials(normalizers=["batch", MAPPING], schedule={"name": "step", "milestones": [0.3]}):
        back = Trial.from_dict(json.loads(json.dumps(trial.to_dict())))
        assert back == trial
        assert back.identity == trial.identity
    assert trial.label == "backbone=frozen, head=as it is"


def test_the_learning_rate_goes_with_the_batch():
    found = trials(batch_sizes=[2, 20], optimizers=[{"learning_rate": 0.1, "reference_batch": 10}])
    assert {t.batch: pytest.approx(t.step_size) for t in found} == {2: 0.02, 20: 0.2}


def test_a_search_is_once_for_all_seeds_and_the_best_rate_is_taken():
    rates = recipe(optimizers=[{"learning_rate": [0.01, 0.1, 1.0]}], seeds=2)
    found = plan(rates, "cpu")
    assert len(found) == 2 * 3
    assert all(t.searching and t.seed == 0 for t in found)
    scores = {t: {0.01: 0.5, 0.1: 0.9, 1.0: None}[t.learning_rate] for t in found}
    scores[next(t for t in found if t.label == "batch" and t.learning_rate == 0.01)] = 0.9
    chosen = after_search(rates, scores)
    assert len(chosen) == 2 * 2
    assert {(t.label, t.learning_rate) for t in chosen} == {("batch", 0.01), ("group:num_groups=4", 0.1)}, (
        "the smaller on a tie"
    )
    assert not any(t.searching for t in chosen)

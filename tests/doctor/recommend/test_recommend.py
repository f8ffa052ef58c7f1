"""What is recommended: models with opposite faults get opposite answers, chance gets none, and nothing of the model is changed."""

import itertools
import json
import random

import numpy as np
import pytest
import torch
from analysis.helpers_analysis import changed, everything, record
from torch import nn
from torch.nn.functional import cross_entropy

import normsmith as ns
from normsmith.doctor.recommend.constraints import Constraints
from normsmith.doctor.recommend.pool import Pool
from normsmith.doctor.recommend.ranking import ranked
from normsmith.doctor.recommend.recommend import _plan
from normsmith.doctor.recommend.trial import Measured
from normsmith.doctor.subject import Subject


@pytest.fixture(autouse=True)
def _one_thread():
    """Layers of a few hundred numbers: two threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clusters(number=256):
    centers = torch.randn(4, 16, generator=torch.Generator().manual_seed(5))
    y = torch.arange(number) % 4
    return centers[y] + 0.7 * torch.randn(number, 16), y


def brightness(number=256):
    """The class is how bright a sample is as a whole: what a norm of single samples takes away."""
    y = torch.arange(number) % 4
    return (1.0 + y.float()).unsqueeze(1) * (1 + 0.1 * torch.randn(number, 16)), y


def trained(data, steps=60):
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        x, y = data(64)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def loader(data, size=16, number=256):
    x, y = data(number)
    return list(zip(x.split(size), y.split(size), strict=True))


def order(found):
    return [row.method for row in found.rows if row.standing == "ranked"]


THREE = ["batch", "layer", "group:num_groups=2"]


def test_opposite_faults_get_opposite_rankings():
    small = ns.examine(trained(clusters), loader(clusters)).recommend({"batch": 2}, candidates=THREE)
    whole = ns.examine(trained(brightness), loader(brightness)).recommend(candidates=THREE)
    assert order(small)[-1] == "batch"
    assert "batch" not in small.tied, str(small)
    assert order(whole)[0] == "batch"
    assert whole.best == "batch", str(whole)
    assert whole.cure == 'ns.convert(model, "batch")'
    assert (small.batch, whole.batch, small.unit) == (2, 16, "loss")
    rows = {row.method: row for row in small.rows}
    assert rows["batch"].noise > 0.5
    assert rows["layer"].noise == 0
    assert rows["layer"].gap == pytest.approx(0, abs=1e-6)
    assert rows["batch"].training > rows["batch"].evaluation
    assert "mates in a batch of 2" in rows["batch"].reason
    assert rows["layer"].reason.startswith("no dependence on the batch")


def test_after_training_it_is_the_loss_in_evaluation_that_counts():
    torch.manual_seed(0)
    exam = ns.examine(trained(clusters, 0), loader(clusters))
    before = {row.method: row for row in exam.recommend(candidates=["layer", "batch"]).rows}
    after = exam.recommend(candidates=["layer", "batch"], train_steps=30)
    assert after.train_steps == 30
    assert "Adam" in after.optimizer
    rows = {row.method: row for row in after.rows}
    for method in ("layer", "batch"):
        assert rows[method].score < 0.7 * before[method].score
    assert rows["batch"].score == rows["batch"].evaluation
    assert "after 30 steps (Adam, lr 0.001), in evaluation" in str(after)


def test_the_same_seed_gives_the_same_numbers():
    exam = ns.examine(nn.Sequential(trained(clusters), nn.Dropout(0.5)), loader(clusters))

    def numbers(candidates):
        torch.rand(1)
        rows = exam.recommend({"batch": 4}, candidates=candidates, train_steps=2, seed=3).rows
        return [(r.method, r.score, r.low, r.high, r.noise) for r in rows]

    assert numbers(THREE) == numbers(THREE[::-1])


def test_nothing_is_measured_that_was_learned_from():
    plan, size = _plan(Subject(trained(clusters, 1), loader(clusters)), Constraints(batch=8), 20, 0)
    learned = {int(i) for part in (*plan.learning, *plan.lessons) for i in part}
    for cut in plan.rounds:
        tested = [int(i) for part in cut for i in part]
        assert len(set(tested)) == len(tested) == 128
        assert not learned & set(tested)
    assert len(plan.lessons) == 20
    assert {len(part) for part in (*plan.learning, *plan.lessons, *plan.rounds[0])} == {size} == {8}


def test_what_is_the_same_is_not_told_apart():
    found = ns.examine(trained(clusters), loader(clusters)).recommend(candidates=["batch", "batch:momentum=0.2"])
    assert found.best is None
    assert found.cure is None
    assert set(found.tied) == {"batch", "batch:momentum=0.2"}
    assert "cannot be told apart" in str(found)


def test_few_batches_tell_nothing():
    found = ns.examine(trained(brightness), loader(brightness)).recommend({"batch": 48}, candidates=THREE)
    assert found.best is None
    assert found.rows[0].low == -float("inf")
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_labels_it_is_the_distance():
    exam = ns.examine(trained(brightness), [x for x, _ in loader(brightness)])
    found = exam.recommend(candidates=THREE)
    assert found.unit == "distance"
    assert order(found)[0] == "batch"
    rows = {row.method: row for row in found.rows}
    assert rows["batch"].evaluation < 0.3 < rows["layer"].evaluation
    with pytest.raises(ns.InputError, match="train_steps expects a loss"):
        exam.recommend(train_steps=1)


def test_constraints():
    exam = ns.examine(trained(clusters), loader(clusters))
    free = exam.recommend({"batch_independent": True}, candidates=["batch", "layer"])
    assert {row.method: row.standing for row in free.rows} == {"layer": "ranked", "batch": "ruled out"}
    assert free.best == "layer"
    quick = exam.recommend({"max_slowdown": 1e-3}, candidates=["batch"])
    assert quick.rows[0].standing == "ruled out"
    assert "max_slowdown is 0.001" in quick.rows[0].reason
    assert (quick.best, quick.tied) == (None, ())
    assert "no candidate could be measured" in str(quick)


def test_a_candidate_that_fails_is_a_row():
    found = ns.examine(trained(clusters), loader(clusters)).recommend({"batch": 1}, candidates=["batch", "layer"])
    rows = {row.method: row for row in found.rows}
    assert rows["batch"].standing == "failed"
    assert "more than 1 value per channel" in rows["batch"].reason
    assert rows["layer"].standing == "ranked"
    assert rows["layer"].slowdown is None, "the model as it is cannot take a step"
    assert "failed, TooFewValuesError" in str(found)


def test_layers_that_could_not_be_converted_are_said():
    model = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Unflatten(1, (4, 3)), nn.LayerNorm((4, 3)), nn.Flatten())
    found = ns.examine(model, [x for x, _ in loader(clusters)]).recommend(candidates=["group"])
    assert "1 layers could not be converted: 3" in found.rows[0].reason


@pytest.mark.gpu
def test_on_a_gpu():
    model = trained(clusters).cuda()
    before = record_of(model)
    exam = ns.examine(model, loader(clusters), depth="full")
    assert exam.missing == ()
    assert exam.recommend({"batch": 4}, candidates=THREE, train_steps=2).rows[0].standing == "ranked"
    assert all(torch.equal(one, other) for one, other in zip(before, record_of(model), strict=True))


def record_of(model):
    return [torch.cuda.get_rng_state(), *(t.clone() for t in model.state_dict().values())]


def test_a_budget_ends_it():
    found = ns.examine(trained(clusters), loader(clusters)).recommend(candidates=THREE, budget=1e-3)
    assert [row.standing for row in found.rows] == ["ranked", "not measured", "not measured"]
    assert found.rows[1].reason == "the budget of 0.001 s was used up"
    assert found.best is None, "others were not measured"
    assert "2 were not; give more budget" in str(found)


def test_default_candidates():
    found = ns.examine(trained(clusters), loader(clusters)).recommend({"batch": 64}, budget=1e-3)
    assert [row.method for row in found.rows] == ["batch", "group", "layer", "renorm", "switchable", "filtered"]
    tokens = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8), nn.RMSNorm(8))
    found = ns.examine(tokens, [torch.randn(16, 5, 8)]).recommend({"batch": 2}, budget=1e-3)
    assert [row.method for row in found.rows] == ["rms", "layer", "dynamic_tanh", "batch"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"constraints": {"bacth": 2}}, "did you mean 'batch'"),
        ({"constraints": {"batch": 0}}, "positive number of samples"),
        ({"constraints": {"batch": 2.5}}, "positive number of samples"),
        ({"constraints": {"batch_independent": 1}}, "True or False"),
        ({"constraints": {"max_slowdown": -1}}, "above 0"),
        ({"train_steps": -1}, "train_steps"),
        ({"candidates": "batch"}, "names of the catalog"),
        ({"candidates": ["grup"]}, "did you mean 'group'"),
        ({"budget": 0}, "seconds above 0"),
        ({"constraints": {"batch": 200}}, "at least 800 samples"),
        ({"constraints": {"batch": 1, "max_slowdown": 2}}, "leave max_slowdown out"),
    ],
)
def test_bad_options(arguments, says):
    exam = ns.examine(trained(clusters, 1), loader(clusters))
    with pytest.raises((ns.OptionError, ns.InputError), match=says) as caught:
        exam.recommend(**arguments)
    assert "\n" not in str(caught.value)


def test_data_that_cannot_be_cut_again():
    model = trained(clusters, 1)
    with pytest.raises(ns.InputError, match="got an iterator"):
        ns.examine(model, iter(loader(clusters))).recommend()
    ragged = [torch.randn(8, 16, 3), torch.randn(8, 16, 4)]
    with pytest.raises(ns.InputError, match="samples of one shape"):
        ns.examine(nn.Sequential(nn.BatchNorm1d(16)), ragged).recommend()
    with pytest.raises(ns.InputError, match="batches of tensors"):
        ns.examine(model, [3], forward=lambda m, b: m(torch.randn(8, 16))).recommend()


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = trained(clusters)

    def forward(self, x, y):
        z = self.inside(x)
        return {"loss": cross_entropy(z, y), "logits": z}


def test_mappings_and_losses_in_the_output():
    exam = ns.examine(Named(), [{"x": x, "y": y} for x, y in loader(clusters)])
    found = exam.recommend({"batch": 8}, candidates=["batch", "layer"], train_steps=1)
    assert found.unit == "loss"
    assert all(row.standing == "ranked" for row in found.rows), str(found)


@pytest.mark.parametrize("steps", [0, 2])
def test_nothing_is_changed(steps):
    model, (x, y) = everything()
    for norm in (model.first, model.second, model.population, model.torchs):
        norm.running_mean += 0.01
    exam = ns.examine(model, [(x, y)] * 6)
    before, others = record(model), random.getstate()
    found = exam.recommend({"batch": 3}, candidates=["batch", "instance", "kalman"], train_steps=steps)
    assert changed(before, record(model)) == []
    assert others == random.getstate()
    assert len(order(found)) == 3, str(found)
    model.lock = itertools.count  # can be copied
    model.stuck = (i for i in range(3))
    with pytest.raises(ns.ModelError, match=r"copy\.deepcopy"):
        exam.recommend()


def test_the_noise_is_that_of_theory():
    """Of a Gaussian: 1 / M of the mean, x² / 2M of the deviation; a sample is among its own mates, so a little less."""
    data = [(torch.randn(512, 64), None)]
    found = ns.examine(nn.Sequential(nn.BatchNorm1d(64)), data).recommend({"batch": 16}, candidates=["batch"])
    assert found.rows[0].noise == pytest.approx((1.5 / 16) ** 0.5, rel=0.1)


# --- parts ----------------------------------------------------------------------------------------------------------------------


def test_a_pool_builds_batches_as_those_of_the_loader():
    names = [f"sample {i}" for i in range(10)]
    whole = [{"x": torch.arange(10)[i : i + 5], "more": (torch.tensor(3.0), names[i : i + 5])} for i in (0, 5)]
    pool = Pool(whole, None)
    found = pool.batch(torch.tensor([7, 0]))
    assert found["x"].tolist() == [7, 0]
    assert found["more"] == [torch.tensor(3.0), ["sample 7", "sample 0"]]
    assert (pool.size, pool.first) == (10, 5)
    assert Pool(whole, 1).size == 5


def measured(evaluation, training=None):
    evaluation = torch.as_tensor(evaluation).double()
    training = evaluation if training is None else torch.as_tensor(training).double()
    return Measured(evaluation, training.expand(4, -1), 0.0, 1.0)


def test_scores():
    noise = torch.randn(12).double()
    found = {"a": measured(noise, noise + 2), "b": measured(noise + 1), "c": measured(noise + 0.9)}
    scores = ranked(found, trained=False, seed=0)
    assert list(scores) == ["c", "b", "a"]
    assert scores["a"].value == pytest.approx(noise.mean().item() + 2)
    assert scores["b"].behind == pytest.approx(0.1)
    assert scores["b"].told_apart, "on the same batches their difference has no chance in it"
    assert list(ranked(found, trained=True, seed=0)) == ["a", "c", "b"]
    chance = {"a": measured(noise), "b": measured(torch.randn(12).double() + noise.mean() + 0.05)}
    assert not any(score.told_apart for score in ranked(chance, trained=False, seed=0).values())


@pytest.mark.parametrize("number", [5, 20])
def test_intervals_cover(number):
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(150):
        sample = torch.from_numpy(generator.normal(size=number))
        score = ranked({"a": measured(sample)}, trained=True, seed=seed)["a"]
        hits += score.low <= 0 <= score.high
    assert 0.90 <= hits / 150 <= 1

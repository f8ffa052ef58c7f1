"""Layers in other coordinates, normalized weights and normalized gradients, by name in a recipe."""

import json
from dataclasses import replace

import pytest
import torch
from trials.helpers_trials import DATA, SMALL, recipe, records, trials
from trials.test_training import stop_after_an_epoch

import normsmith as ns
from normsmith import data
from normsmith.errors import OptionError
from normsmith.natural.layer import NaturalLayer
from normsmith.trials.algorithms import begin
from normsmith.trials.build import build, place, try_on
from normsmith.trials.coordinates import Coordinates
from normsmith.trials.files import Folder
from normsmith.trials.labels import label_of, spoken
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE
from normsmith.trials.trained import load_trained
from normsmith.trials.training import make_optimizer
from normsmith.trials.trial import run_trial

# A checkpoint is made after 6 steps: within the window before the refresh after 8, and after one.
WAYS = {
    "prong_plus:every=4,window=3,batches=2,moments=transform": "centralize",
    "gwnn_post:every=4,window=3,batches=2": "trust_ratio",
    "eigennet:every=4,window=3,batches=2": "layer",
    "weight_standardization:convention=timm": "clip:max_norm=0.5",
}
SLOW_RATE = [{"learning_rate": 0.01}]


def test_the_grid_has_every_combination():
    found = trials(reparametrize=["none", "wnn"], normalize_gradients=["none", "centralize"], normalizers=["batch", "none"])
    assert [t.label for t in found] == [
        label
        for normalizer in ("batch", "none")
        for label in (normalizer, f"{normalizer} + centralize", f"{normalizer} + wnn", f"{normalizer} + wnn + centralize")
    ]
    assert len({t.identity for t in found}) == len(found)
    (plain,) = trials(normalizers=["batch"])
    assert plain == found[0]
    for trial in found:
        assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial
    assert replace(found[2], reparametrize="wnn:every=50").identity != found[2].identity
    assert recipe(reparametrize="wnn", normalize_gradients="layer").reference == "batch + wnn + layer"
    assert (label_of({"head": None}, None, "clip"), spoken("none + wnn")) == ("head=as it is + clip", "the bare network + wnn")


@pytest.mark.parametrize("way", WAYS)
def test_it_runs_goes_on_to_the_same_bits_and_is_there_again(tmp_path, way):
    changes = {"optimizers": SLOW_RATE, "training": {"keep_weights": True}, "epochs": 2}
    (trial,) = trials(reparametrize=way, normalize_gradients=WAYS[way], normalizers=["none"], **changes)
    whole, killed = Folder(tmp_path / "whole"), Folder(tmp_path / "killed")
    assert run_trial(trial, whole) == "finished", whole.manifest(trial.identity)
    stop_after_an_epoch(trial, killed)
    assert run_trial(trial, killed) == "finished"
    assert records(whole, trial) == records(killed, trial)
    one, two = (folder.load_weights(trial.identity) for folder in (whole, killed))
    assert all(torch.equal(one[key], two[key]) for key in one if isinstance(one[key], torch.Tensor))
    model, test = load_trained(whole.path, trial.identity)
    right = sum(float((model(x).argmax(1) == y).sum()) for x, y in test)
    assert right / 60 == pytest.approx(whole.manifest(trial.identity)["accuracy"])


def test_layers_are_placed_by_training_batches_and_refreshed_with_the_optimizer():
    (trial,) = trials(reparametrize="wnn:every=2,window=2,batches=3", normalize_gradients="centralize", normalizers=["none"])
    algorithm = begin(trial, None, ALONE)
    model = build(trial, data.load(DATA))
    plain = build(trial, data.load(DATA))
    place(model, trial, algorithm)
    first = next(m for m in model.modules() if isinstance(m, NaturalLayer))
    seen = torch.cat([x for _, (x, _) in zip(range(3), algorithm.batches(0, 0), strict=False)]).flatten(1)
    torch.testing.assert_close(first.center, seen.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(model(seen.view(-1, 1, 8, 8)), plain(seen.view(-1, 1, 8, 8)), atol=1e-4, rtol=1e-4)
    optimizer = make_optimizer(model, trial)
    center = first.center.clone()
    for step, batch in enumerate(algorithm.batches(0, 0), start=1):
        optimizer.zero_grad()
        list(algorithm.gradients(model.train(), batch, 0.0))
        optimizer.step()
        assert float(first.whitened_weight.grad.mean(1).abs().max()) < 1e-7, "gradients are centralized"
        assert "momentum_buffer" in optimizer.state[first.whitened_weight]
        ns.step_schedules(model, step, 6)
        assert (first.whitened_weight in optimizer.state) == (step % 2 == 1), "a refresh drops the momentum"
        if step == 2:
            break
    assert not torch.equal(center, first.center)


def test_domains_are_told_to_conditional_norms():
    changes = {"datasets": [f"{DATA} -> {DATA}"], "algorithm": "adamatch", "models": ["mlp_relu"], "batch_sizes": [10]}
    (trial,) = trials(reparametrize="wnn:batches=2", normalizers=["context"], training={"ema": 0}, **changes)
    assert not try_on(trial, begin(trial, None, ALONE).sets)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reparametrize": "wn"}, "reparametrize expects one of wnn"),
        ({"reparametrize": ["wnn:evry=3"]}, "did you mean 'every'"),
        ({"reparametrize": ["wnn:every=0"]}, "every, a number of optimizer steps"),
        ({"reparametrize": ["wnn:batches=0"]}, "batches, how many to use"),
        ({"reparametrize": ["wnn:eps=small"]}, "expects numbers behind 'wnn'"),
        ({"reparametrize": ["spectral:every=3"]}, "options among eps, power_iterations: got 'every'"),
        ({"reparametrize": ["wnn", "wnn"]}, "each of reparametrize once"),
        ({"reparametrize": []}, "at least 1 item"),
        ({"reparametrize": ["wnn"], "training": {"ema": 0.9}}, "expects no average of weights with wnn"),
        ({"normalize_gradients": "centralise"}, "'centralize'"),
        ({"normalize_gradients": "clip:norm=1"}, "did you mean 'max_norm'"),
        ({"normalize_gradients": "layer:eps=0"}, "eps above zero"),
        ({"reparametrize": "weight_norm:eps=abc"}, "eps as a number: got 'abc'"),
        ({"reparametrize": "orthogonal:orthogonal_map=qr"}, "orthogonal_map to be one of"),
        ({"reparametrize": "eigennet:scale=fisher"}, "scale=mean in a recipe"),
        ({"reparametrize": ["wnn:eps=0.1,every=100", "wnn:eps=0.1"]}, "each of reparametrize once"),
        ({"baseline": "batch", "reparametrize": "wnn"}, "baseline among the normalizers batch + wnn"),
    ],
)
def test_what_is_wrong(change, says):
    with pytest.raises(OptionError) as caught:
        recipe(**change)
    assert says in str(caught.value)


def test_coordinates_that_stay_can_be_averaged_and_what_cannot_be_placed_is_told_before(tmp_path):
    recipe(reparametrize=["wnn:every=none", "orthogonal"], training={"ema": 0.9})
    assert Coordinates.of("gwnn_pre:energy=0.9").options == {"energy": 0.9}
    with pytest.raises(ns.errors.InputError, match=r"gwnn_pre:eps=0.0 at 20 samples .*full rank"):
        ns.compare(
            {**SMALL, "reparametrize": ["gwnn_pre:eps=0.0"], "normalizers": ["batch"]}, tmp_path, engine="inline", quiet=True
        )


def test_a_comparison_of_them_is_a_comparison(tmp_path):
    small = {**SMALL, "normalizers": ["batch"], "epochs": 1, "seeds": 2, "optimizers": SLOW_RATE}
    ways = {"reparametrize": ["none", "wnn:every=3,batches=2"], "normalize_gradients": ["none", "centralize"]}
    result = ns.compare({**small, **ways}, tmp_path, engine="inline", quiet=True)
    names = ["batch", "batch + centralize", "batch + wnn:every=3,batches=2", "batch + wnn:every=3,batches=2 + centralize"]
    assert len(result.statistics.settings) == 1, "they stand beside each other in one setting"
    assert sorted(e.normalizer for e in result.statistics.entries) == names
    assert result.statistics.baseline == "batch"
    assert all(name in str(result) for name in names)
    assert {d.normalizer for d in result.statistics.differences} == set(names[1:])

"""Weight decay by module type: every parameter of the catalog is classified, each is in one group, and optimizers take them."""

import pytest
import torch
from helpers import CHANNELS, VARIANTS
from torch import nn

import normsmith as ns
from normsmith.methods._kinds import DECAYED, KINDS, kind_of


def kinds(model, **options):
    """The group of each parameter by name."""
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group["name"] for group in ns.param_groups(model, 0.1, **options) for p in group["params"]}


def linked(name):
    """Two layers of a method, linked where it can be."""
    first = ns.make(name, CHANNELS)
    return nn.Sequential(first, ns.make(name, CHANNELS, previous=first)) if hasattr(first, "link") else first


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_every_parameter_of_the_catalog_says_what_it_is(case):
    for module in (*case.make().modules(), *linked(case.name).modules()):
        for name in module._parameters:
            assert kind_of(module, name) in KINDS, f"{type(module).__name__} does not say in parameter_kinds what {name} is"


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_only_maps_of_the_catalog_decay(case):
    layer = linked(case.name) if not case.options else case.make()
    for group in ns.param_groups(nn.Sequential(nn.Linear(2, 2, bias=False), layer), 0.1):
        assert group["weight_decay"] == (0.1 if group["name"] in {"weights", *DECAYED} else 0)
        assert group["name"] in KINDS or list(map(torch.numel, group["params"])) == [4]


def test_the_kinds_by_method():
    expected = {
        "switchable": {"weight": "affine", "bias": "affine", "mean_weight": "logits", "var_weight": "logits"},
        "filter_response": {"weight": "affine", "bias": "affine", "tau": "thresholds"},
        "dynamic_tanh": {"weight": "affine", "bias": "affine", "alpha": "slopes"},
        "batch_instance": {"weight": "affine", "bias": "affine", "rho": "logits"},
    }
    for name, found in expected.items():
        assert kinds(ns.make(name, 4)) == found
    chain = kinds(linked("kalman"))
    assert chain["1.filter.transition"] == "transitions"
    assert chain["1.filter.raw_noise"] == "floors"
    assert chain["1.filter.raw_gain"] == "logits"
    assert kinds(ns.ConditionalNorm(4, condition_features=3))["weight_map"] == "maps"


class OtherRMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))


class NormedTable(nn.Module):
    """Called a norm, with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 2))
        self.relative_bias = nn.Parameter(torch.ones(3))


def test_the_kinds_of_other_modules():
    assert kinds(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.PReLU())) == {
        "0.weight": "weights",
        "0.bias": "biases",
        "1.weight": "affine",
        "1.bias": "affine",
        "2.weight": "slopes",
    }
    for norm in (nn.LayerNorm((2, 3)), nn.GroupNorm(1, 3), nn.RMSNorm(3), nn.InstanceNorm1d(3, affine=True), OtherRMSNorm(3)):
        assert set(kinds(norm).values()) == {"affine"}, norm
    assert kinds(NormedTable()) == {"table": "weights", "relative_bias": "affine"}
    assert kinds(nn.LSTM(2, 3))["bias_hh_l0"] == "biases"
    assert kinds(nn.LSTM(2, 3))["weight_hh_l0"] == "weights"
    assert kinds(nn.MultiheadAttention(4, 2))["in_proj_bias"] == "biases"
    assert kinds(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))) == {
        "bias": "biases",
        "parametrizations.weight.original0": "weights",
        "parametrizations.weight.original1": "weights",
    }
    norm = nn.LayerNorm(3)
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Softplus())
    assert kinds(norm) == {"bias": "affine", "parametrizations.weight.original": "affine"}


def test_shared_parameters_are_in_one_group_and_what_must_not_decay_wins():
    model = nn.ModuleDict({"words": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False), "norm": nn.LayerNorm(4)})
    model["head"].weight = model["words"].weight
    model["other"] = OtherRMSNorm(4)
    model["other"].scale = model["norm"].weight
    assert kinds(model) == {"words.weight": "embeddings", "norm.weight": "affine", "norm.bias": "affine"}
    groups = {group["name"]: group for group in ns.param_groups(model, 0.1)}
    assert groups["embeddings"]["weight_decay"] == 0.1
    groups = {group["name"]: group for group in ns.param_groups(model, 0.1, decay_embeddings=False)}
    assert groups["embeddings"]["weight_decay"] == 0


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_take_the_groups(kind, names):
    model = nn.Sequential(nn.Linear(3, 4), ns.SwitchableNorm(4, instance=False), nn.Linear(4, 2))
    groups = ns.param_groups(model, 0.1, overrides={"logits": {"lr": 0.5}, "slopes": {"lr": 3.0}}, names=names)
    optimizer = kind(groups, lr=1e-2)
    found = {group["name"]: group for group in optimizer.param_groups}
    assert found["logits"]["lr"] == 0.5
    assert found["weights"]["lr"] == 1e-2
    assert "slopes" not in found
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    if names:
        assert found["logits"]["param_names"] == ["1.mean_weight", "1.var_weight"]
    other = kind(ns.param_groups(model, 0.1, names=names), lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert {group["name"]: group["lr"] for group in other.param_groups}["logits"] == 0.5


def test_decay_reaches_the_weights_alone():
    model = nn.Sequential(nn.Linear(3, 4), ns.BatchNorm(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(ns.param_groups(model, 0.1), lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (0.9 if name == "0.weight" else 1)), name


def test_bad_use():
    model = nn.Linear(2, 2)
    with pytest.raises(ns.ModelError, match="got list"):
        ns.param_groups([model], 0.1)
    with pytest.raises(ns.ModelError, match="got ReLU without any"):
        ns.param_groups(nn.ReLU(), 0.1)
    with pytest.raises(ns.OptionError, match="weight_decay of 0 or more: got -1"):
        ns.param_groups(model, -1)
    with pytest.raises(ns.OptionError, match=r"weights, embeddings, biases, .*: got 'gamma'"):
        ns.param_groups(model, 0.1, overrides={"gamma": {"lr": 1}})
    with pytest.raises(ns.OptionError, match="got 'params' for 'biases'"):
        ns.param_groups(model, 0.1, overrides={"biases": {"params": []}})

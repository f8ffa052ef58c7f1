"""`place`, `fold` and `undo` on models, what is left alone, and the first lengths by data."""

import copy
import math

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns

NAMES = tuple(ns.weights.catalog())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.inside = nn.Linear(4, 4)
        self.again = self.inside
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.again(self.inside(self.embedding(x))))


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 1, groups=6),
        nn.ConvTranspose2d(6, 4, 2),
        nn.Flatten(),
        nn.Linear(100, 3),
    ]
    return nn.Sequential(*layers).double()


def images(seed=0):
    return torch.randn(8, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", ["fold", "undo"])
def test_fold_and_undo(name, verb):
    model, x = network(), images()
    parameters, before = list(model.parameters()), model(x)
    keys = list(model.state_dict())
    placement = ns.weights.place(model, name)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    trained = model.eval()(x)
    assert getattr(placement, verb)() == placement.placed
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert [type(m) for m in model] == [type(m) for m in network()]
    if verb == "fold":
        assert_same(model(x), trained, tolerance=1e-12)
        assert not torch.equal(trained, before)
    else:
        fresh = network()
        assert all(torch.equal(model[i].weight, fresh[i].weight) for i in (0, 2, 3, 5) if str(i) in placement.placed)
    with pytest.raises(ns.ModelError, match=f"undo expects a placement that stands: got one after {verb}"):
        placement.undo()


def test_the_table():
    placement = ns.weights.place(network(), "weight_standardization")
    assert placement.placed == ["0", "3", "5"]
    text = str(placement)
    assert "weight_standardization: 3 weights, 1 left" in text
    assert "its rows are single numbers" in text
    assert "6 × 27" in text
    assert "4 × 24" in text  # of the transposed one
    assert repr(placement) == "<Placement: weight_standardization of 3 weights>"


def test_weight_norm_and_spectral_norm_of_a_unit_leave_the_function():
    model, x = network(), images()
    before = model(x)
    placement = ns.weights.place(model, "weight_norm")
    assert_same(model(x), before, tolerance=1e-13)
    assert all(row.change < 1e-14 for row in placement.rows)


def test_shared_and_parametrized():
    model = Tied()
    placement = ns.weights.place(model, "weight_norm")
    assert placement.placed == ["inside"]
    assert [row.reason for row in placement.rows if row.reason] == ["other layers share its weight"]
    assert model.again is model.inside
    model(torch.tensor([1, 2])).sum().backward()
    assert model.inside.parametrizations.weight.original1.grad is not None
    with pytest.raises(ns.ModelError, match="got 'inside', but its weight is parametrized already; fold that first"):
        ns.weights.place(model, "spectral")
    nn.utils.parametrize.register_parametrization(model.inside, "bias", nn.Identity())
    placement.undo()
    assert nn.utils.parametrize.is_parametrized(model.inside, "bias")
    second = ns.weights.place(model, "spectral")
    nn.utils.parametrize.remove_parametrizations(model.inside, "weight")
    with pytest.raises(ns.ModelError, match="expects the weight of 'inside' as it was placed"):
        second.fold()


def test_frozen_weights_come_back():
    model, x = network().requires_grad_(False), images()
    before = model(x)
    placement = ns.weights.place(model, "weight_norm")
    placement.fold()
    assert_same(model(x), before, tolerance=1e-13)
    assert not any(p.requires_grad for p in model.parameters())
    assert not list(model.buffers())
    assert ns.weights.place(model, "weight_norm").placed == placement.placed


def test_an_optimizer_stays_valid_where_there_is_one_parameter():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ns.weights.place(model, "weight_standardization")
    before = model[0].weight.detach().clone()
    model(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("bias", [True, False])
def test_first_lengths_by_data(bias):
    torch.manual_seed(0)
    layers = [
        nn.Conv1d(3, 5, 3, bias=bias),
        nn.Tanh(),
        nn.ConvTranspose1d(5, 4, 2, groups=1, bias=bias),
        nn.Tanh(),
        nn.Linear(9, 6, bias=bias),
    ]
    model, x = nn.Sequential(*layers).double().train(), torch.randn(16, 3, 10, dtype=torch.float64) * 3 + 1
    ns.weights.place(model, "weight_norm", data=x)
    assert model.training
    seen = x
    for layer in model:
        seen = layer(seen)
        if isinstance(layer, nn.Tanh):
            continue
        columns = (seen if isinstance(layer, nn.Linear) else seen.movedim(1, -1)).flatten(0, -2)
        assert_same(columns.std(0, correction=0), torch.ones(columns.shape[1], dtype=torch.float64))
        if bias:
            assert float(columns.mean(0).detach().abs().max()) < 1e-12


def test_first_lengths_of_a_constant_channel_and_of_groups():
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2).double()
    with torch.no_grad():
        layer.weight[0:2, 1] = 0
    model = nn.Sequential(layer)
    ns.weights.place(model, "weight_norm", data={"input": images()[:, [0, 1, 2, 0]]})
    y = model(images()[:, [0, 1, 2, 0]]).movedim(1, -1).flatten(0, -2).detach()
    assert [round(float(s), 6) for s in y.std(0, correction=0)] == [1, 0, 1, 1, 1, 1]
    with pytest.raises(ns.InputError, match="expects data with finite outputs"):
        ns.weights.place(model := network(), "weight_norm", data=(images() * float("inf"),))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters(), strict=True))
    ns.weights.place(model, "weight_norm", data=images()).undo()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), network().parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("weight_norms", {}, "got 'weight_norms'; did you mean 'weight_norm'"),
        ("weight_norm", {"gain": 1.0}, "weight_norm expects options among eps: got 'gain'"),
        ("spectral", {"power_iterations": 0}, "expects power_iterations as a positive integer: got 0"),
        ("spectral", {"data": torch.ones(1)}, "spectral expects no data"),
        ("spectral", {"eps": 0}, "expects eps above zero"),
        ("weight_standardization", {"convention": "mine"}, "expects convention to be one of 'readme', 'timm': got 'mine'"),
        ("orthogonal", {"orthogonal_map": "qr"}, "expects orthogonal_map to be one of"),
    ],
)
def test_options_that_cannot_work(name, options, sentence):
    with pytest.raises(ns.OptionError, match=sentence):
        ns.weights.place(network(), name, **options)


def test_an_error_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1))
    with pytest.raises(ns.OptionError, match="expects orthogonal_map='polar' for convolutions"):
        ns.weights.place(model, "orthogonal", orthogonal_map="cayley")
    assert not nn.utils.parametrize.is_parametrized(model[0])


def test_models_that_cannot_be_edited():
    with pytest.raises(ns.ModelError, match="expects linear or convolutional layers: got ReLU"):
        ns.weights.place(nn.ReLU(), "spectral")
    with pytest.raises(ns.ModelError, match="without any that where"):
        ns.weights.place(network(), "spectral", where=lambda layer, name: name == "7")
    with pytest.raises(ns.ModelError, match="before the model has run once"):
        ns.weights.place(nn.LazyLinear(3), "spectral")
    layer = nn.Linear(2, 2)
    nn.init.zeros_(layer.weight)
    with pytest.raises(ns.ModelError, match="its weight is zero"):
        ns.weights.place(layer, "spectral")
    with pytest.raises(ns.ModelError, match=r"expects a torch\.nn\.Module: got str"):
        ns.weights.place("resnet", "spectral")


def test_seen_by_param_groups():
    model = network()
    ns.weights.place(model, "weight_norm")
    groups = {group["name"]: len(group["params"]) for group in ns.param_groups(model, 1e-4)}
    assert groups == {"weights": 8, "biases": 4}


def test_what_became_of_a_weight_is_told_in_words():
    layer = nn.Linear(4, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4) * 0.1)
    said = {name: str(ns.weights.place(copy.deepcopy(layer), name)) for name in ("weight_norm", "spectral", "orthogonal")}
    assert "weight as it was" in said["weight_norm"]
    assert "weight 10 times as large" in said["spectral"]
    assert "weight 10 times as large" in said["orthogonal"]
    assert "turned" not in said["orthogonal"]
    with torch.no_grad():
        layer.weight.add_(0.1)
    row = ns.weights.place(layer, "weight_standardization").rows[0]
    old, new = torch.full((4, 4), 0.1).double() + torch.eye(4).double() * 0.1, layer.weight.detach()
    cosine = (old * new).sum() / old.norm() / new.norm()
    assert (
        row.words
        == f"weight {float(new.norm() / old.norm()):.2g} times as large, turned by {math.degrees(math.acos(cosine)):.0f}°"
    )

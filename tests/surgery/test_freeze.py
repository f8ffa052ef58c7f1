"""Statistics that `model.train()` cannot thaw."""

import pytest
import torch
from torch import nn

import normsmith as ns


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), ns.BatchNorm(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), ns.SwitchableNorm(4)), ns.GroupNorm(4)
    )


def moved(model):
    """The layers whose statistics a step of training moves."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(torch.randn(4, 3, 6, 6) * 3 + 1)
    return {k.rpartition(".")[0] for k, v in model.state_dict().items() if not torch.equal(before[k], v)}


def test_frozen_in_training_and_thawed_again():
    model = net()
    assert moved(model) == {"1", "3.1"}
    assert ns.freeze(model) == ["1", "3.1"]
    assert moved(model) == set()
    assert all(p.requires_grad for p in model.parameters())
    assert ns.unfreeze(model, where=lambda module, _: isinstance(module, ns.BatchNorm)) == ["1"]
    assert moved(model) == {"1"}


def test_frozen_is_part_of_the_state():
    model, other = net(), net()
    ns.freeze(model, where=lambda _, name: name.startswith("3"))
    other.load_state_dict(model.state_dict())
    assert moved(other) == {"1"}


def test_affine():
    model = net()
    ns.freeze(model, where=lambda _, name: name == "3.1", affine=True)
    stopped = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert stopped == {"3.1.weight", "3.1.bias"}, "neither logits nor other layers"
    ns.unfreeze(model, affine=True)
    assert all(p.requires_grad for p in model.parameters())
    conditional = nn.Sequential(ns.ConditionalNorm(4, condition_features=3))
    ns.freeze(conditional, affine=True)
    assert not any(p.requires_grad for p in conditional.parameters())


def test_a_layer_born_frozen():
    layer = ns.FrozenNorm(4)
    assert ns.unfreeze(layer) == [""]
    assert not layer.frozen
    assert ns.freeze(layer) == [""]
    assert layer.frozen


def test_nothing_to_freeze():
    with pytest.raises(ns.ModelError, match=r"got 2 LayerNorm, 1 InstanceNorm2d$"):
        ns.freeze(nn.Sequential(nn.LayerNorm(3), nn.LayerNorm(3), nn.InstanceNorm2d(3)))
    with pytest.raises(ns.ModelError, match="Sequential without normalizers among its 2 modules"):
        ns.freeze(nn.Sequential(nn.ReLU()))
    model = net()
    with pytest.raises(ns.ModelError, match=r"that where\(\) selects: got 1 BatchNorm with running statistics, 1 Switch"):
        ns.freeze(model, where=lambda *_: False)
    with pytest.raises(ns.ModelError, match="normsmith, which alone can be frozen: got 1 BatchNorm2d with running"):
        ns.unfreeze(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(ns.ModelError, match="inside DataParallel"):
        ns.freeze(nn.DataParallel(model))
    with pytest.raises(ns.ModelError, match="'0', which is lazy"):
        ns.freeze(nn.Sequential(nn.LazyBatchNorm2d()))
    assert moved(model) == {"1", "3.1"}


class TestLayersOfTorch:
    """They become ours in place."""

    def model(self):
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, eps=1e-3),
            nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            nn.GroupNorm(2, 4),
        )

    def test_frozen(self):
        model = self.model()
        assert moved(model) == {"1", "2"}
        parameters, keys = dict(model.named_parameters()), set(model.state_dict())
        x = torch.randn(2, 3, 6, 6)
        expected = model.eval()(x)
        assert ns.freeze(model) == ["1", "2"]
        assert moved(model) == set()
        torch.testing.assert_close(model(x), expected)
        assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
        assert set(model.state_dict()) == keys | {"1.frozen", "2.frozen"}
        assert isinstance(model[3], nn.GroupNorm)

    def test_some_of_them(self):
        model = self.model()
        assert ns.freeze(model, where=lambda _, name: name == "2", affine=True) == ["2"]
        assert type(model[1]) is nn.BatchNorm2d
        assert moved(model) == {"1"}
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["2.weight", "2.bias"]

    def test_shared_by_two_parents(self):
        model = self.model()
        both = nn.ModuleDict({"a": model, "b": nn.Sequential(model[1])})
        assert ns.freeze(both) == ["a.1", "a.2"]
        assert both["b"][0] is both["a"][1]

    def test_a_layer_without_a_model(self):
        with pytest.raises(ns.ModelError, match=r"got a BatchNorm2d itself; wrap it in nn.Sequential"):
            ns.freeze(nn.BatchNorm2d(3))

    def test_what_cannot_become_ours_is_an_error_and_nothing_is_done(self):
        class Strange(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x).sin()

        model = nn.Sequential(nn.BatchNorm2d(4), Strange(4), ns.BatchNorm(4))
        with pytest.raises(ns.ModelError, match=r"'1', a Strange: .*; leave it out in where"):
            ns.freeze(model)
        assert type(model[0]) is nn.BatchNorm2d
        assert not model[2].frozen

"""`refusals`: every layer that has a statistic of one element is named, and nothing of the model is changed."""

import copy

import pytest
import torch
from surgery.helpers_surgery import ConvNet, assert_untouched, everything
from torch import nn

import normsmith as ns


def test_a_batch_of_one_at_one_position():
    model = ConvNet().eval()
    x = torch.randn(1, 3, 6, 6)
    before = everything(model)
    found = ns.analysis.refusals(model, x)
    assert list(found) == ["head.norm"]  # the batch norms of several positions are legal
    assert found["head.norm"].startswith("Expected more than 1 value per channel")
    assert_untouched(model, before)
    assert ns.analysis.refusals(model, torch.randn(2, 3, 6, 6)) == {}
    assert_untouched(model, before)


def test_all_layers_are_heard():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), ns.InstanceNorm(8), ns.BatchNorm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ns.BatchNorm(8, on_single="running"), ns.GroupNorm(8, num_groups=8), ns.SwitchableNorm(8),
    )  # fmt: skip
    found = ns.analysis.refusals(model, torch.randn(1, 3, 3, 3))
    assert list(found) == ["1", "2", "6"]
    assert "GroupNorm expects more than one element" in found["6"]
    assert ns.analysis.refusals(model, torch.randn(2, 3, 3, 3)).keys() == {"1", "6"}
    assert ns.analysis.refusals(model, (torch.randn(1, 3, 4, 3), torch.zeros(1))).keys() == {"6"}
    assert all("forward" not in vars(m) for m in model.modules())


def test_other_errors_and_warnings_come_through():
    model = nn.Sequential(ns.BatchNorm(4))
    with pytest.raises(ns.InputError, match="expects 4 channels"):
        ns.analysis.refusals(model, torch.randn(2, 3))
    assert "forward" not in vars(model[0])

    class Noisy(nn.GroupNorm):
        def forward(self, x):
            import warnings

            warnings.warn("something else", stacklevel=1)
            return super().forward(x)

    with pytest.warns(UserWarning, match="something else"):
        assert ns.analysis.refusals(nn.Sequential(Noisy(1, 4)), torch.randn(2, 4, 2)) == {}


def test_the_same_random_numbers_follow():
    model = nn.Sequential(nn.Dropout(), ns.BatchNorm(4), ns.NoisyNorm(4))
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ns.analysis.refusals(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize(("name", "norm", "samples", "expected"), [
    ("resnet20:depths=(1,1),width=4", "batch", 1, False),
    ("resnet20:depths=(1,1),width=4", "ghost", 1, False),
    ("mlp:width=4", "batch", 1, True),
    ("mlp:width=4", "batch", 2, False),
    ("mlp:width=4", "switchable", 1, False),
    ("mlp:width=4", "instance", 8, True),
    ("lstm:width=4", "batch", 1, True),
])  # fmt: skip
def test_of_networks(name, norm, samples, expected):
    model = ns.models.make(name, norm=norm, image_size=8)
    shape = ns.models.catalog()[name.partition(":")[0]].input_shape(samples, image_size=8)
    assert bool(ns.analysis.refusals(model, torch.randn(shape))) == expected

import math

import pytest
import torch
from helpers import assert_same
from natural.helpers_natural import after, covariance, layer_and_input
from torch import nn

import normsmith as ns
from normsmith.natural.post import PostWhitenedLayer, PostWhitening, relu_gaussian_moments
from normsmith.natural.whitener import aligned, whitener


@pytest.mark.parametrize("ratio", [-40.0, -6.0, -1.3, 0.0, 0.4, 3.0, 9.0])
@pytest.mark.parametrize("alpha", [2.0, -0.5])
def test_moments_of_a_rectified_gaussian_are_the_integrals(ratio, alpha):
    beta = ratio * abs(alpha)
    phi = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    weight = torch.exp(-phi.square() / 2) / math.sqrt(2 * math.pi) * 12e-6
    value = torch.relu(alpha * phi + beta)
    expected_mean = (value * weight).sum()
    expected_var = ((value - expected_mean).square() * weight).sum()
    mean, var = relu_gaussian_moments(*(torch.tensor(v, dtype=torch.float64) for v in (alpha, beta)))
    torch.testing.assert_close(mean, expected_mean, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(var, expected_var, rtol=1e-6, atol=1e-12)


def test_moments_agree_with_samples_and_a_constant_has_no_variance():
    alpha, beta = torch.tensor([1.5, -0.7, 0.0, 0.0]), torch.tensor([0.3, -0.2, 2.0, -1.0])
    samples = torch.relu(alpha * torch.randn(400_000, 4) + beta)
    mean, var = relu_gaussian_moments(alpha, beta)
    torch.testing.assert_close(mean, samples.mean(0), rtol=0.02, atol=1e-6)
    torch.testing.assert_close(var, samples.var(0), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv1d", "linear, tokens"])
def test_the_outputs_are_white_behind_a_refresh(name):
    layer, x = layer_and_input(name)
    made = PostWhitenedLayer(layer, PostWhitening(eps=1e-2, rank=3))
    made.whitened_bias = None
    after(made, x)
    outputs = []
    made.norm.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    made.eval()
    made(x)
    h = outputs[0].movedim(1, -1).reshape(-1, 3)
    plain = made.geometry.rows(layer(x)) - (layer.bias if layer.bias is not None else 0)
    values = torch.linalg.eigvalsh(covariance(plain)).flip(0)
    damped = values + 1e-2 * values.mean()
    assert_same(covariance(h), torch.diag((values / damped)[:3]), tolerance=1e-8)
    assert_same(made.norm.running_mean, h.mean(0), tolerance=1e-8)
    assert_same(made.norm.running_var, h.var(0, correction=0), tolerance=1e-8)


def test_axes_stay_as_near_as_they_can():
    torch.manual_seed(1)
    rows = torch.randn(200, 5).double() @ torch.randn(5, 5).double()
    old = whitener(covariance(rows)[None], 0.0).matrix
    moved = covariance(rows + 0.01 * torch.randn(200, 5).double())[None]
    fresh = whitener(moved, 0.0).matrix
    flipped = torch.tensor([-1.0, 1, -1, 1, -1]).double()[:, None] * fresh
    turned = aligned(flipped, moved, old)
    assert_same(turned @ moved @ turned.mT, fresh @ moved @ fresh.mT, tolerance=1e-9)  # as white as before
    far = {
        name: (rows @ (m - old)[0].T).square().mean()
        for name, m in (("turned", turned), ("fresh", fresh), ("flipped", flipped))
    }
    assert far["turned"] <= far["fresh"] + 1e-12
    assert far["turned"] < 0.05 * far["flipped"]
    assert_same(aligned(fresh, moved, fresh), fresh, tolerance=1e-9)


def test_options_that_cannot_work():
    for options in ({"basis": "zca"}, {"covariance": "none"}, {"energy": 2.0}):
        with pytest.raises(ns.OptionError, match="expects"):
            PostWhitening(**options)


def test_by_parameters_the_covariance_is_that_of_independent_gaussians():
    layers = [
        PostWhitenedLayer(nn.Linear(6, 6).double(), PostWhitening(eps=0.0, energy=1.0, covariance="gaussian")) for _ in "ab"
    ]
    first, second = layers
    _, x = layer_and_input("linear")
    after(first, x)
    nn.init.uniform_(first.norm.weight, 0.5, 2)
    nn.init.uniform_(first.norm.bias, -1, 1)
    after(second, torch.relu(first(x)))
    second.before = [first]
    second.attend("never")
    assert second.gather()  # nothing was seen
    second.refresh()
    phi = torch.randn(200_000, 6).double()
    rows = torch.relu(phi * first.norm.weight + first.norm.bias) @ second.whitened_weight.T @ second.restoring[0].T
    assert_same(covariance(rows.detach()), torch.eye(6).double(), tolerance=0.03)
    assert second.due() == "never"

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from natural.helpers_natural import LAYERS, after, covariance, eigen, layer_and_input, whitened
from torch import nn

import normsmith as ns
from normsmith.natural.eigen import Eigen
from normsmith.natural.whitened import WhitenedLayer, Whitening
from normsmith.natural.whitener import whitener


def distance(one, other):
    return float(((one - other).abs().max() / other.abs().max()).detach())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["pca", "zca", "eigen"])
def test_refreshes_keep_the_function(name, kind):
    layer, x = layer_and_input(name)
    y = layer(x)
    slope = torch.randn_like(y)
    made = eigen(layer, x, slope) if kind == "eigen" else whitened(layer, x, basis=kind)
    assert distance(made(x), y) < 1e-12
    assert distance(made.weight, layer.weight) < 1e-12
    after(made, x.flip(0)[: len(x) // 2] * 1.5 - 1, slope[: len(x) // 2] if kind == "eigen" else None)
    assert distance(made(x), y) < 1e-12
    assert not torch.allclose(made.whitened_weight, layer.weight)  # other coordinates they are


@pytest.mark.parametrize("name", ["conv2d", "conv2d, groups", "conv1d"])
def test_a_padded_convolution_pads_first_then_whitens(name):
    layer, x = layer_and_input(name)
    made = whitened(layer, x)
    groups, size = made.whitening.shape[0], made.whitening.shape[-1]
    pads = [p for pad in reversed(layer.padding) for p in (pad, pad)]
    centred = F.pad(x, pads) - made.center.view(1, -1, *[1] * (x.dim() - 2))
    parts = centred.unflatten(1, (groups, size))
    white = torch.einsum("gri,ngi...->ngr...", made.whitening, parts).flatten(1, 2)
    convolve = F.conv1d if x.dim() == 3 else F.conv2d
    weight = made.whitened_weight
    y = convolve(white, weight, made.whitened_bias, layer.stride, 0, layer.dilation, layer.groups)
    assert_same(made(x), y, tolerance=1e-12)


@pytest.mark.parametrize("basis", ["pca", "zca"])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1])
def test_the_whitened_inputs_have_the_damped_covariance(basis, eps):
    layer, x = layer_and_input("linear")
    made = whitened(layer, x, eps=eps, basis=basis)
    white = (x - made.center) @ made.whitening[0].T
    values, vectors = torch.linalg.eigh(covariance(x))
    ratios = values / (values + eps * values.mean())
    assert_same(white.mean(0), torch.zeros(6).double(), tolerance=1e-10)
    found = covariance(white)
    if basis == "pca":
        assert_same(found, torch.diag(ratios.flip(0)), tolerance=1e-9)
    else:
        assert_same(found, vectors @ torch.diag(ratios) @ vectors.T, tolerance=1e-9)
        assert_same(made.whitening[0], made.whitening[0].T, tolerance=1e-10)


def test_convolutions_whiten_channels_over_positions_by_group():
    layer, x = layer_and_input("conv2d, groups")
    made = whitened(layer, x, eps=0.0)
    rows = x.movedim(1, -1).reshape(-1, 2, 3) - made.center.view(2, 3)
    for group in range(2):
        assert_same(covariance(rows[:, group] @ made.whitening[group].T), torch.eye(3).double(), tolerance=1e-9)


@pytest.mark.parametrize("basis", ["pca", "zca"])
def test_a_gradient_step_is_preconditioned_by_the_covariance(basis):
    layer, x = layer_and_input("linear")
    made = whitened(layer, x, eps=0.0, basis=basis)
    target, rate = torch.randn(50, 4).double(), 0.1
    for one in (layer, made):
        F.mse_loss(one(x), target).backward()
    with torch.no_grad():
        made.whitened_weight -= rate * made.whitened_weight.grad
        made.whitened_bias -= rate * made.whitened_bias.grad
    dw, db, c = layer.weight.grad, layer.bias.grad, x.mean(0)
    step = (dw - torch.outer(db, c)) @ torch.linalg.inv(covariance(x))
    assert_same(made.weight, layer.weight - rate * step, tolerance=1e-10)
    assert_same(made.bias, layer.bias - rate * (db - step @ c), tolerance=1e-10)


def test_without_a_bias_the_step_is_by_second_moments():
    layer, x = layer_and_input("linear, no bias")
    made = whitened(layer, x, eps=0.0)
    for one in (layer, made):
        one(x).square().mean().backward()
    with torch.no_grad():
        made.whitened_weight -= 0.1 * made.whitened_weight.grad
    assert made.bias is None
    assert_same(made.weight, layer.weight - 0.1 * layer.weight.grad @ torch.linalg.inv(x.T @ x / 50), tolerance=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_an_eigennet_step_is_the_step_of_kfac(bias):
    layer = nn.Linear(6, 4, bias=bias).double()
    _, x = layer_and_input("linear")
    target = torch.randn(50, 4).double()

    def loss(y):
        return (y - target).pow(4).sum(1).mean()

    y = layer(x)
    dh = torch.autograd.grad(loss(y), y)[0]
    made = eigen(layer, x, dh, eps=0.0, clip=1e9, scale="fisher")
    for one in (layer, made):
        one.zero_grad()
        loss(one(x)).backward()
    with torch.no_grad():
        for p in made.parameters():
            p.sub_(0.01 * p.grad)
    ones = torch.cat([x, torch.ones(50, 1).double()], 1) if bias else x
    whole = torch.cat([layer.weight, layer.bias[:, None]], 1) if bias else layer.weight
    slope = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1) if bias else layer.weight.grad
    g, a = covariance(50 * dh, False), covariance(ones, False)
    kfac = whole - 0.01 * torch.linalg.solve(g, slope) @ torch.linalg.inv(a)
    assert_same(made.weight, kfac[:, :6], tolerance=1e-9)
    if bias:
        assert_same(made.bias, kfac[:, 6], tolerance=1e-9)


def test_a_truncated_eigennet_step_is_that_of_kfac_within_the_directions_kept():
    layer, x = layer_and_input("linear")
    dh = torch.randn(50, 4).double() / 50
    made = eigen(layer, x, dh, eps=0.0, clip=1e9, scale="fisher", rank=3)
    assert made.whitened_weight.shape == (4, 3)
    values, vectors = torch.linalg.eigh(covariance(x))
    kept, mean = vectors[:, 3:], x.mean(0)
    inverse = kept @ torch.diag(1 / values[3:]) @ kept.T
    assert_same(made(x), (mean + (x - mean) @ kept @ kept.T) @ layer.weight.T + layer.bias, tolerance=1e-9)
    before = made.weight
    made.zero_grad()
    made(x).backward(dh)
    slope = dh.T @ (x - mean)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.sub_(0.01 * parameter.grad)
    assert_same(made.weight, before - 0.01 * torch.linalg.solve(covariance(50 * dh, False), slope @ inverse), tolerance=1e-9)
    assert eigen(layer, x, dh, energy=0.9).options.basis == "pca"
    assert Eigen().basis == "zca"


def test_the_fisher_block_of_an_eigennet_layer_is_the_identity_by_kronecker():
    layer, x = layer_and_input("linear")
    dh = torch.randn(50, 4).double() @ torch.randn(4, 4).double() / 50
    made = eigen(layer, x, dh, eps=0.0, clip=1e9, scale="fisher")
    inner = 50 * dh @ made.restoring[0]  # the gradients at V U (x - c) + d
    assert_same(covariance(inner, False), torch.eye(4).double(), tolerance=1e-9)
    blown = eigen(layer, x, dh * 1e-6, scale="mean")
    assert_same(blown.restoring, eigen(layer, x, dh, scale="mean").restoring, tolerance=1e-9)


def test_gradients_that_vanish_are_bounded():
    layer, x = layer_and_input("linear")
    none = eigen(layer, x, torch.zeros(50, 4).double())
    assert_same(none.restoring[0], torch.eye(4).double())
    flat = torch.randn(50, 1).double().expand(50, 4) * torch.tensor([1, 1e-9, 0, 0]).double()
    made = eigen(layer, x, flat, clip=30.0, eps=0.0)
    assert float(torch.linalg.cond(made.restoring[0])) == pytest.approx(30, rel=1e-6)
    assert distance(made(x), layer(x)) < 1e-12


def test_fewer_samples_than_channels_and_dead_channels():
    layer, x = layer_and_input("linear")
    few = x[:3].clone()
    few[:, 2] = 0
    made = whitened(layer, few)
    assert distance(made(x), layer(x)) < 1e-12
    assert float(made.whitening.abs().max()) < 1e3
    dead = whitened(layer, torch.zeros(9, 6).double())
    assert_same(dead.whitening[0] @ dead.whitening[0].T, torch.eye(6).double())
    assert distance(dead(x), layer(x)) < 1e-12
    with pytest.raises(ns.InputError, match="full rank"):
        whitened(layer, few, eps=0.0)


def test_what_is_left_out_is_the_discarded_variance():
    layer, x = layer_and_input("linear")
    made = whitened(layer, x, rank=2, eps=0.0)
    values, vectors = torch.linalg.eigh(covariance(x))
    kept = vectors[:, -2:]
    mean = x.mean(0)
    expected = (mean + (x - mean) @ kept @ kept.T) @ layer.weight.T + layer.bias
    assert_same(made(x), expected, tolerance=1e-10)
    assert made.whitened_weight.shape == (4, 2)
    # With orthonormal rows as weights the error of the outputs is that of the inputs: the discarded eigenvalues.
    plain = nn.Linear(6, 6).double()
    nn.init.orthogonal_(plain.weight)
    error = (whitened(plain, x, rank=2, eps=0.0)(x) - plain(x)).square().sum(1).mean()
    assert_same(error, values[:4].sum(), tolerance=1e-9)
    whole = whitened(layer, x, energy=1.0)
    assert distance(whole(x), layer(x)) < 1e-12
    share = values.flip(0).cumsum(0) / values.sum()
    for energy in (0.5, 0.9, 0.999):
        assert whitened(layer, x, energy=energy).whitening.shape[1] == int((share < energy).sum()) + 1


def test_a_truncated_layer_keeps_its_width_and_nearly_its_function():
    layer, x = layer_and_input("conv2d")
    made = whitened(layer, x, energy=0.9)
    rank, y = made.whitening.shape[1], made(x)
    parameter = made.whitened_weight
    after(made, x[: len(x) // 2])
    assert made.whitened_weight is parameter
    assert made.whitening.shape[1] == rank < 6
    assert 1e-12 < distance(made(x), y) < 0.2


@pytest.mark.parametrize("normed", [True, False])
def test_a_norm_behind_takes_over(normed):
    layer, x = layer_and_input("conv2d" if normed else "conv2d, no bias")
    made = WhitenedLayer(copy.deepcopy(layer), Whitening())
    made.expect_norm()
    after(made, x)
    y = layer(x)
    made.take_norm(y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0))
    made.eval()
    assert distance(made(x), y) < 1e-12
    assert made.norm.bias.requires_grad
    after(made, x * 2 + 1)
    assert distance(made(x), y) < 1e-12
    made.train()
    made.norm.weight.data.fill_(1)
    made.norm.bias.data.zero_()
    assert_same(made(x).mean((0, 2, 3)), torch.zeros(4).double(), tolerance=1e-9)
    assert_same(made(x).var((0, 2, 3), correction=0), torch.ones(4).double(), tolerance=1e-3)


def test_repeated_eigenvalues_and_what_undoes():
    found = whitener(torch.eye(5).double().repeat(2, 1, 1) * 4, 0.0)
    assert_same(found.matrix @ found.inverse, torch.eye(5).double().repeat(2, 1, 1), tolerance=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"eps": -1.0}, {"basis": "qr"}, {"energy": 0.0}, {"rank": 0}, {"basis": "zca", "rank": 2}, {"eps": float("nan")}],
)
def test_options_that_cannot_work(options):
    with pytest.raises(ns.OptionError, match="expects"):
        Whitening(**options)


def test_options_of_eigennet_that_cannot_work():
    for options in ({"clip": 0.5}, {"scale": "other"}):
        with pytest.raises(ns.OptionError, match="eigennet expects"):
            Eigen(**options)

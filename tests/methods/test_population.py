"""Population norm and gamma decay: constants in the gradient, and the noise of batch norm that the decay stands in for."""

import copy

import pytest
import torch
from helpers import assert_same, example
from torch import nn

import normsmith as ns


def test_is_batch_norm_in_evaluation_with_gradients():
    layer, twin, x = ns.PopulationNorm(4).double(), nn.BatchNorm1d(4).double().eval(), example((6, 4, 5)).requires_grad_()
    y = layer(x)
    twin.load_state_dict(layer.state_dict())
    assert_same(y, twin(x))
    for one, other in zip(*(torch.autograd.grad(t.square().sum(), x) for t in (y, twin(x))), strict=True):
        assert_same(one, other)


def test_the_first_batch_sets_the_averages_and_the_next_move_them_slowly():
    layer, x = ns.PopulationNorm(4).double(), example((6, 4, 5))
    layer(x)
    first = x.transpose(0, 1).flatten(1).mean(1)
    assert_same(layer.running_mean, first)
    layer(x + 10)
    assert_same(layer.running_mean, first + 0.1)


def test_warm_up_is_batch_norm():
    layer, batch = ns.PopulationNorm(4, warmup=2).double(), ns.BatchNorm(4).double()
    for step in range(3):
        x = example((6, 4, 5), seed=step) * (step + 1)
        assert torch.allclose(layer(x), batch(x)) == (step < 2)


def gaussian_noise(gamma, batch, draws=400_000):
    """E L(noisy) - L for a quadratic loss, the noise in mean and in sigma that a batch of that size has, independent of the sample."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, generator=generator, dtype=torch.float64)
    mean = torch.randn(draws, generator=generator, dtype=torch.float64) / batch**0.5
    return ((gamma * (x - mean)).square() / 2).mean() - ((gamma * x).square() / 2).mean()


def test_the_part_of_the_mean_is_the_noise_of_the_mean():
    """Quadratic loss, L = y² / 2: A'' is 1, and the decay is gamma² / (2 M), exactly."""
    gamma, batch = 1.3, 16
    layer = ns.PopulationNorm(1, emulate=batch, activation="linear").double()
    layer.weight.data.fill_(gamma)
    layer(torch.randn(4096, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    found = ns.gamma_decay(nn.Sequential(layer))
    assert found.layers["0"].from_mean.item() * gamma**2 == pytest.approx(gamma**2 / (2 * batch))
    assert gaussian_noise(gamma, batch).item() == pytest.approx(gamma**2 / (2 * batch), rel=0.1)


def test_the_part_of_sigma_at_a_stationary_gamma():
    """Where dL/dgamma = 0 the noise of sigma costs F (rho + 2) / (8 M) gamma² to the first order; here L = (gamma x - target)² / 2."""
    gamma, batch, draws = 1.7, 64, 2_000_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, generator=generator, dtype=torch.float64)
    target = gamma * x  # every sample is fitted: the derivative by gamma is zero, the curvature x²
    ratio = (
        1 + torch.randn(draws, generator=generator, dtype=torch.float64) * (2 / (4 * batch)) ** 0.5
    )  # sigma of a batch, rho = 0
    measured = ((gamma * x / ratio - target).square() / 2).mean().item()
    layer = ns.PopulationNorm(1, emulate=batch, activation="linear").double()
    layer.weight.data.fill_(gamma)
    layer(x[:200_000].view(-1, 1))
    predicted = ns.gamma_decay(layer).layers[""].from_var.item() * gamma**2
    assert predicted == pytest.approx(measured, rel=0.1)


def test_the_loss_is_a_decay_with_a_constant_coefficient():
    model = nn.Sequential(ns.PopulationNorm(3, emulate=8), nn.ReLU(), ns.PopulationNorm(3, emulate=8)).double()
    model(example((16, 3, 4)))
    found = ns.gamma_decay(model)
    grads = torch.autograd.grad(found.loss, [model[0].weight, model[2].weight])
    for grad, name in zip(grads, ("0", "2"), strict=True):
        strength = found.layers[name]
        assert_same(grad, 2 * strength.zeta * model.get_submodule(name).weight)
        assert (strength.zeta > 0).all()
        assert_same(strength.zeta, strength.from_mean + strength.from_var)


def test_kurtosis_and_sizes():
    def strength(x, **options):
        layer = ns.PopulationNorm(1, activation="linear", **options).double()
        layer(x)
        return layer.decay_statistics[0].item(), ns.gamma_decay(layer).layers[""]

    generator = torch.Generator().manual_seed(0)
    laplace = torch.distributions.Laplace(0.0, 1.0)
    torch.manual_seed(0)
    assert strength(laplace.sample((100_000, 1)).double(), emulate=8)[0] == pytest.approx(3, abs=0.4)
    uniform = torch.rand(100_000, 1, generator=generator, dtype=torch.float64)
    assert strength(uniform, emulate=8)[0] == pytest.approx(-1.2, abs=0.05)
    outlier = torch.zeros(10_000, 1, dtype=torch.float64)
    outlier[0] = 1
    assert strength(outlier, emulate=8)[0] == 30, "clamped"
    x = example((8, 1, 5))
    by_samples, by_elements = strength(x, emulate=8)[1], strength(x, emulate=8, count="elements")[1]
    assert_same(by_samples.zeta, by_elements.zeta * 5)
    assert (strength(x, emulate=10**9)[1].zeta < 1e-6).all(), "no noise in an infinite batch"


def test_the_empirical_fisher_information_comes_from_the_gradients_of_samples():
    layer, x = ns.PopulationNorm(3, emulate=8, fisher="empirical", momentum=1.0).double(), example((5, 3, 4))
    for _ in range(2):
        y = layer(x)
        (y.square().flatten(1).sum(1) / 2).mean().backward()
    standard = (x - layer.running_mean.view(1, -1, 1)) / (layer.running_var.view(1, -1, 1) + layer.eps).sqrt()
    per_sample = (y.detach() * standard).sum(2)
    assert_same(layer.decay_statistics[2], per_sample.square().mean(0))
    copy.deepcopy(layer)(x)
    assert_same(layer.weight.grad, layer.weight.grad)


def test_masked_statistics_of_the_decay():
    x, lengths = example((4, 3, 6)), torch.full((4,), 4)
    one, other = (ns.PopulationNorm(3, emulate=8).double() for _ in range(2))
    one(x, lengths=lengths)
    other(x[:, :, :4])
    assert_same(one.decay_statistics, other.decay_statistics)


def test_wrong_options():
    for wrong in (
        {"warmup": -1},
        {"emulate": 0},
        {"count": "all"},
        {"fisher": "no"},
        {"activation": "x"},
        {"track_running_stats": False},
    ):
        with pytest.raises(ns.OptionError):
            ns.PopulationNorm(3, **wrong)
    with pytest.raises(ns.OptionError, match="emulate=32"):
        ns.gamma_decay(nn.Sequential(ns.PopulationNorm(3)))

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normsmith as ns
from normsmith.doctor.observe import observe
from normsmith.doctor.shift import Shift, divergence, wasserstein

means, variances = st.floats(-50, 50), st.floats(0.01, 100)
gaussians = st.tuples(means, variances).map(lambda pair: tuple(torch.tensor(v, dtype=torch.float64) for v in pair))


@given(gaussians, gaussians)
def test_distances_are_distances(one, two):
    for distance in (divergence, wasserstein):
        assert float(distance(*one, *two)) >= -1e-12
        assert float(distance(*one, *two)) == pytest.approx(float(distance(*two, *one)), rel=1e-9, abs=1e-12)
        assert float(distance(*one, *one)) == pytest.approx(0, abs=1e-9)


@given(gaussians, gaussians)
def test_the_divergence_is_that_of_torch(one, two):
    p, q = (torch.distributions.Normal(mean, var.sqrt()) for mean, var in (one, two))
    both = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    assert float(divergence(*one, *two)) == pytest.approx(float(both), rel=1e-8, abs=1e-8)


@given(gaussians, gaussians, gaussians)
def test_the_way_round_is_no_shorter(one, two, three):
    assert float(wasserstein(*one, *three)) <= float(wasserstein(*one, *two)) + float(wasserstein(*two, *three)) + 1e-9


@given(gaussians, gaussians, st.floats(0.1, 10), st.floats(-10, 10))
def test_units(one, two, scale, offset):
    moved = [(mean * scale + offset, var * scale**2) for mean, var in (one, two)]
    assert float(divergence(*moved[0], *moved[1])) == pytest.approx(float(divergence(*one, *two)), rel=1e-6, abs=1e-6)
    assert float(wasserstein(*moved[0], *moved[1])) == pytest.approx(scale * float(wasserstein(*one, *two)), rel=1e-6, abs=1e-6)


def test_of_a_layer():
    model = nn.Sequential(nn.BatchNorm1d(4, eps=0.0)).double()
    model[0].running_mean.fill_(1.0)
    model[0].running_var.fill_(4.0)
    x = torch.randn(400, 4, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, unbiased=False) * 3 - 1
    found = observe(model, list(x.split(50))).layers[0].shift
    assert found.divergence == pytest.approx((9 + 4) / 4 / 2 + (4 + 4) / 9 / 2 - 1)
    assert found.wasserstein == pytest.approx(math.sqrt(4 + 1) / 2)
    assert found.gain == found.gap - found.adapted > 0


def test_where_there_is_none():
    for layer in (nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)):
        assert observe(nn.Sequential(layer), [torch.randn(16, 4)]).layers[0].shift is None
    poisoned = nn.Sequential(nn.BatchNorm1d(4))
    poisoned[0].running_mean[0] = torch.nan
    assert observe(poisoned, [torch.randn(16, 4)]).layers[0].shift is None
    model, data = nn.Sequential(nn.BatchNorm1d(4)), [torch.randn(16, 4) for _ in range(4)]
    ns.recalibrate(model, data)
    assert observe(model, data).layers[0].shift.gain == 0, "statistics of these very data"
    assert Shift(0, 0, 0.1, 0.2).gain == 0

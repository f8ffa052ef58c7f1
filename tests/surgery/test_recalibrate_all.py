"""Recalibration renews every running buffer that a method has, also those beside mean and variance."""

import math

import pytest
import torch
from helpers import CHANNELS, VARIANTS, assert_same, example
from torch import nn

import normsmith as ns

KEPT = ("running_", "num_batches")
BY_BATCH = {
    "filtered",
    "mixture",
    "ghost",
}  # what counts in a statistic depends on the batch it is in; and unbiased parts are averaged


def running(layer):
    return {k: v.clone() for k, v in layer.named_buffers() if k.startswith(KEPT)}


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in VARIANTS
        if c.entry.running and c.name not in BY_BATCH and not c.entry.random and not c.options.get("unbiased")
    ],
    ids=str,
)
def test_batches_are_their_union_in_every_buffer(case):
    parts, whole = case.make(), case.make()
    if parts.running_mean is None or parts.frozen or parts.running_mean.numel() == 0:
        return
    whole.load_state_dict(parts.state_dict())
    x = example((8, CHANNELS, 3, 5)) * 3 + 2
    inputs = {"x": x, **parts.example_inputs(x)}
    before = running(parts)
    ns.recalibrate(parts, [{k: v[part] for k, v in inputs.items()} for part in (slice(6), slice(6, 8))])
    ns.recalibrate(whole, [inputs])
    found, expected = running(parts), running(whole)
    assert found.keys() >= {"running_mean", "running_var"}
    for key, value in found.items():
        assert not torch.equal(value, before[key]) or key == "num_batches_skipped", f"{key} was left"
        if key.startswith("running_"):
            assert_same(value, expected[key])


@pytest.mark.parametrize("size", [2, CHANNELS])
def test_the_covariance_is_that_of_all_data(size):
    layer, x = ns.ZCAWhitening(CHANNELS, group_size=size).double(), example((9, CHANNELS, 4)) * 2 - 1
    ns.recalibrate(layer, x.split([5, 4]))
    flat = x.transpose(0, 1).flatten(1)
    for group, found in enumerate(layer.covariance()):
        assert_same(found, torch.cov(flat[group * size : (group + 1) * size]))
    matrix = ns.ZCAWhitening(CHANNELS, group_size=size, running="matrix", eps=0.1).double()
    ns.recalibrate(matrix, x.split([5, 4]))
    y = matrix.eval()(x).transpose(0, 1).flatten(1)[:size]
    values = torch.linalg.eigvalsh(torch.cov(flat[:size], correction=0))
    assert_same(torch.linalg.eigvalsh(torch.cov(y, correction=0)), values / (values + 0.1))


def fitted(x, prior, mean, var, joint):
    """Shares, mean and variance of components after a step of EM, and the weights they come from: (K, C) or (K, 1)."""

    def moments():
        log = -0.5 * ((x - mean.unsqueeze(1)).square() / var.unsqueeze(1) + (2 * math.pi * var.unsqueeze(1)).log())
        log = prior.log().unsqueeze(1) + (log.sum(2, keepdim=True) if joint else log)
        shares = log.softmax(0).expand(-1, -1, x.shape[1])
        counts = shares.sum(1)
        center = (shares * x).sum(1) / counts
        return counts, center, (shares * (x - center.unsqueeze(1)).square()).sum(1) / counts

    counts, mean, var = moments()
    prior = counts / counts.sum(0)
    prior = prior[:, :1] if joint else prior
    return moments()


@pytest.mark.parametrize("mixture", ["joint", "channel"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mixture_is_that_of_all_data(mixture, accumulate):
    joint = mixture == "joint"
    layer = ns.MixtureNorm(3, components=2, mixture=mixture, accumulate=accumulate, eps=1e-5).double()
    x = torch.cat([example((30, 3)) - 2, example((12, 3)) * 0.5 + 2])[
        torch.randperm(42, generator=torch.Generator().manual_seed(0))
    ]
    for part in x.split(14):
        layer(part)
        layer(part)
    start = layer.running_prior.clone(), layer.running_mean.clone(), layer.running_var.clone()
    ns.recalibrate(nn.Sequential(layer), x.split([25, 17]))
    counts, mean, var = (torch.stack(t) for t in zip(*(fitted(part, *start, joint) for part in x.split([25, 17])), strict=True))
    total = counts.sum(0)
    center = (counts * mean).sum(0) / total
    spread = (counts * (var + (mean - center).square())).sum(0) / total
    assert_same(layer.running_mean, center)
    assert_same(layer.running_var, spread * total / (total - 1))
    expected = total / total.sum(0)
    assert_same(layer.running_prior, expected[:, :1] if joint else expected)
    assert layer.pending_counts is None or not layer.pending_counts.any(), "no micro-batch waits"


@pytest.mark.parametrize("loading", [False, True])
def test_a_mixture_that_has_seen_nothing_does_not_mix_up_its_components(loading):
    """The larger cluster of one batch is the smaller of the other."""
    layer = ns.MixtureNorm(2, components=2).double()
    if loading:
        layer.num_batches_tracked.fill_(7)  # as of a batch norm: all components are alike
    low, high = (
        torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3 + at for at in (-4, 4)
    )
    batches = [torch.cat([low[:30], high[:10]]), torch.cat([low[30:], high[10:]])]
    ns.recalibrate(layer, batches)
    assert_same(layer.running_mean.mean(1).sort().values, torch.stack([low.mean(), high.mean()]), tolerance=1e-6)
    assert_same(layer.running_prior.flatten(), torch.full((2,), 0.5), tolerance=1e-6)

"""Conversion to layers that want a condition: every condition begins with what there was for all."""

import copy

import pytest
import torch
from surgery.helpers_surgery import ConvNet, assert_untouched, everything, shaken
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import normsmith as ns

TARGETS = (
    "conditional",
    "conditional:num_conditions=3,statistics=condition",
    "conditional:condition_features=2",
    "context:num_contexts=3",
    "context:unknown=average",
    "context:stats=parameters",
    "context:stats=parameters,eps_outside=true,eps=1e-3",
)


def condition_for(target, samples):
    return torch.randn(samples, 2) if "features" in target else torch.arange(samples) % 2


@pytest.mark.parametrize("target", TARGETS)
def test_outputs_are_what_they_were_under_every_condition(target):
    model = shaken(ConvNet()).eval()
    old, before, x = copy.deepcopy(model), everything(model), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    conversion = ns.convert(model, target, verify=x, optimizer=optimizer)
    assert conversion.output_error < 1e-5
    assert len(conversion.converted) == 3
    assert all(row.error is not None and row.error < 1e-5 for row in conversion.rows)
    assert all("that ns.conditioned gives" in row.fresh[-1] for row in conversion.rows)
    with ns.conditioned(model, condition_for(target, 4)):
        torch.testing.assert_close(model(x), old(x))
        model.train()(x).sum().backward()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    optimizer.step()
    conversion.undo()
    model.eval()
    with torch.no_grad():
        for tensor, value in zip(model.state_dict().values(), before["state"].values(), strict=True):
            tensor.copy_(value)  # the step moved what old and new share
    assert_untouched(model, before)


def test_conditions_go_their_own_ways_in_training():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[1].weight.requires_grad_(False)
    ns.convert(model, "conditional:num_conditions=2,statistics=condition")
    layer = model[1]
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    with ns.conditioned(model, torch.ones(6, dtype=torch.long)):
        model(torch.randn(6, 3, 5, 5)).square().sum().backward()
    assert not layer.bias.grad[0].any()
    assert layer.bias.grad[1].any()
    assert not layer.running_mean[0].any()
    assert layer.running_mean[1].any()
    assert layer.num_batches_tracked.tolist() == [0, 1]


def test_what_has_nothing_to_carry_or_cannot():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    ns.convert(model, "context:stats=parameters")
    assert not model[1].context_mean.any(), "group norm has no statistics to begin with"
    norm = weight_norm(nn.BatchNorm2d(4), dim=None)
    with pytest.raises(ns.ModelError, match="it is parametrized, for one weight, not for one by condition"):
        ns.convert(nn.Sequential(nn.Conv2d(3, 4, 1), norm), {"1": "conditional"})
    with pytest.raises(ns.OptionError, match="a method that takes one input: got 'adain', which needs a second one"):
        ns.convert(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "adain")

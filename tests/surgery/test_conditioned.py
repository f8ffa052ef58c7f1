"""A condition for all layers of a network at once."""

import copy

import pytest
import torch
from torch import nn

import normsmith as ns

IDS = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("norm", ["context", "conditional:statistics=condition"])
@pytest.mark.parametrize("model", ["shallow_cnn:width=4", "vit:width=8,heads=2,depth=1,patch=4"])
def test_every_layer_gets_it(norm, model):
    net = ns.models.make(model, norm=norm, image_size=8, num_classes=3).eval()
    layers = [m for m in net.modules() if isinstance(m, ns.ContextNorm | ns.ConditionalNorm)]
    assert layers
    for layer in layers:
        layer.running_mean[1] += 3
    x = torch.randn(4, 3, 8, 8)
    with ns.conditioned(net, IDS):
        y = net(x)
        named = net(x)
    assert torch.equal(y, named)
    with ns.conditioned(net, torch.zeros_like(IDS)):
        first = net(x)
    torch.testing.assert_close(y[IDS == 0], first[IDS == 0])
    assert not torch.allclose(y[IDS == 1], first[IDS == 1])
    assert not any(m._forward_pre_hooks for m in net.modules()), "it leaves nothing behind"
    with pytest.raises(TypeError, match=r"con(dition|text)"):
        net(x)


def test_a_condition_that_is_named_is_kept():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = ns.ContextNorm(3)

        def forward(self, x, ids):
            return self.norm(self.norm(x, ids), context=ids)

    one, x = Net(), torch.randn(4, 3, 5)
    other = copy.deepcopy(one)
    with ns.conditioned(one, 1 - IDS):
        y = one(x, IDS)
    assert torch.equal(y, other(x, IDS))


def test_what_cannot_be_conditioned():
    for model, says in ((nn.BatchNorm1d(3), "with normalizers that take a condition: got none"), (3, "got int")):
        with pytest.raises(ns.ModelError, match=says), ns.conditioned(model, IDS):
            pass

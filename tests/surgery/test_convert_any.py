"""Random module trees: whatever the structure, a conversion finds each layer once, and its undoing leaves no bit behind."""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surgery.foreign import BatchNormAct2d, FrozenBatchNorm2d, GemmaRMSNorm, GroupNormAct, LayerNorm2d, PlainSubclassNorm
from surgery.helpers_surgery import assert_untouched, everything, shaken
from torch import nn

import normsmith as ns

CHANNELS = 8
LEAVES = (
    lambda: nn.Conv2d(CHANNELS, CHANNELS, 1),
    nn.ReLU,
    lambda: nn.BatchNorm2d(CHANNELS),
    lambda: nn.BatchNorm2d(CHANNELS, affine=False, momentum=None),
    lambda: nn.GroupNorm(2, CHANNELS),
    lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    lambda: PlainSubclassNorm(CHANNELS, eps=1e-3),
    lambda: BatchNormAct2d(CHANNELS),
    lambda: GroupNormAct(CHANNELS),
    lambda: LayerNorm2d(CHANNELS),
    lambda: FrozenBatchNorm2d(CHANNELS),
    lambda: ns.SwitchableNorm(CHANNELS),
    lambda: ns.IBN(CHANNELS, ratio=0.3),
)


class Residual(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return x + sum(part(x) for part in self.parts)


@st.composite
def models(draw):
    """A tree of sequences and residual sums over a pool of leaves, which may hang in several places, and be frozen or in evaluation."""
    pool = [shaken(make(), seed) for seed, make in enumerate(draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=5)))]
    leaf = st.sampled_from(pool)
    tree = st.recursive(
        leaf,
        lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([nn.Sequential, Residual]).map(lambda kind: kind(*parts))
        ),
        max_leaves=8,
    )
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), draw(leaf), draw(tree))
    for module in pool:
        module.train(draw(st.booleans()))
        for parameter in module.parameters():
            parameter.requires_grad_(draw(st.booleans()))
    return model


def is_torchs_norm(module):
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models(), target=st.sampled_from(["batch", "group:num_groups=4", "switchable", "position", "ibn", "frozen"]))
def test_convert_and_undo(model, target):
    x = torch.randn(2, 3, 4, 4)
    before = everything(model)
    reference = copy.deepcopy(model).eval()(x)
    try:
        conversion = ns.convert(model, target, verify=x)
    except ns.ModelError:
        assert_untouched(model, before)
        assert not any(is_torchs_norm(m) for m in model.modules())
        return
    cls = ns.catalog()[target.partition(":")[0]].load()
    assert not any(is_torchs_norm(m) for m in model.modules())
    assert sum(isinstance(m, cls) for m in model.modules()) == len(conversion.converted)
    model.eval()(x)
    conversion.undo()
    for module, mode in zip(model.modules(), before["modes"], strict=True):
        module.training = mode
    assert_untouched(model, before)
    assert torch.equal(copy.deepcopy(model).eval()(x), reference)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=models())
def test_every_layer_to_its_own_kind_is_the_same_function(model):
    x = torch.randn(2, 3, 4, 4)
    expected = copy.deepcopy(model).eval()(x)
    kinds = {
        nn.modules.batchnorm._BatchNorm: "batch",
        nn.GroupNorm: "group",
        nn.InstanceNorm2d: "instance",
        LayerNorm2d: "position",
        FrozenBatchNorm2d: "frozen",
    }
    try:
        conversion = ns.convert(model, kinds, verify=x)
    except ns.ModelError:
        assert not any(is_torchs_norm(m) for m in model.modules())
        return
    assert conversion.output_error < 1e-4
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


def test_layers_that_are_left_do_not_stop_the_others():
    net = nn.ModuleList([GemmaRMSNorm(4), nn.BatchNorm2d(4)])
    conversion = ns.convert(net, "group")
    assert conversion.converted == ["1"]
    assert "computes something else" in conversion.rows[0].reason

"""What layers are taken for: torch's by type, others by what they compute."""

import pytest
import torch
from surgery.foreign import (
    BatchNormAct2d,
    BiasFreeNorm2d,
    FrozenBatchNorm2d,
    GemmaRMSNorm,
    GroupNormAct,
    LayerNorm2d,
    LlamaRMSNorm,
    PlainSubclassNorm,
)
from torch import nn

import normsmith as ns
from normsmith.surgery._recognise import recognise
from normsmith.surgery._source import NotUnderstoodError

KNOWN = [
    (nn.BatchNorm1d(6), "batch", False),
    (nn.BatchNorm2d(6, affine=False), "batch", False),
    (nn.BatchNorm3d(6, track_running_stats=False), "batch", False),
    (nn.SyncBatchNorm(6), "batch", False),
    (nn.InstanceNorm1d(6), "instance", False),
    (nn.InstanceNorm2d(6, affine=True), "instance", False),
    (nn.InstanceNorm3d(6, track_running_stats=True), "instance", False),
    (nn.GroupNorm(3, 6), "group", False),
    (nn.LayerNorm(6), "layer", True),
    (nn.LayerNorm((6, 4, 4)), "layer", False),
    (nn.RMSNorm(6), "rms", True),
    (ns.SwitchableNorm(6), "switchable", False),
    (ns.LayerNorm((6,)), "layer", True),
    (PlainSubclassNorm(6), "batch", False),
    (BatchNormAct2d(6), "batch", False),
    (BatchNormAct2d(6, track_running_stats=False), None, False),
    (GroupNormAct(8), "group", False),
    (LayerNorm2d(6), "position", False),
    (FrozenBatchNorm2d(6), "frozen", False),
    (LlamaRMSNorm(6), "rms", True),
]


@pytest.mark.parametrize(
    ("layer", "method", "last"), KNOWN, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
def test_known_layers(layer, method, last):
    if method is None:
        with pytest.raises(NotUnderstoodError):
            recognise(layer)
        return
    source = recognise(layer)
    assert (source.method, source.channels_last) == (method, last)
    assert all(source.tensors[key] is t for key, t in layer.named_parameters() if "." not in key)


@pytest.mark.parametrize("layer", [GemmaRMSNorm(6), BiasFreeNorm2d(6)])
def test_a_layer_that_only_looks_like_one_is_left(layer):
    with pytest.raises(NotUnderstoodError, match="computes something else"):
        recognise(layer)


def test_recognition_moves_nothing():
    layer = BatchNormAct2d(6).train()
    before = {key: t.clone() for key, t in layer.state_dict().items()}
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    state = torch.get_rng_state()
    recognise(layer)
    assert layer.training
    assert not called
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[key]) for key, t in layer.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LazyBatchNorm2d(), "run it once"),
        (nn.LocalResponseNorm(3), "no number of channels"),
        (ns.AdaIN(6), "second input"),
    ],
)
def test_what_cannot_be_read_says_why(layer, reason):
    with pytest.raises(NotUnderstoodError, match=reason):
        recognise(layer)


def test_what_is_no_normalizer_is_none():
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert all(recognise(module) is None for module in weighted.modules())
    assert recognise(nn.Conv2d(3, 3, 1)) is None
    assert recognise(nn.Sequential(nn.BatchNorm2d(3))) is None

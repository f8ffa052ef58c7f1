"""What happens to an activation inside a norm: carried between ours and classes like timm's, left where a norm is folded away."""

import copy

import pytest
import torch
from surgery.foreign import BatchNormAct2d, GroupNormAct
from surgery.helpers_surgery import shaken
from torch import nn

import normsmith as ns
from normsmith.activation import Activation
from normsmith.surgery.adapted import Adapted

C = 8


def image(size=6):
    return torch.randn(4, C, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("made", "target", "act"),
    [
        (lambda: ns.BatchNorm(C, act="leaky_relu:negative_slope=0.2"), "batch:eps=1e-5", Activation("leaky_relu", 0.2)),
        (lambda: BatchNormAct2d(C, act_layer=nn.LeakyReLU), "batch", Activation("leaky_relu", 0.01)),
        (lambda: GroupNormAct(C), "group", Activation("silu")),
    ],
)
def test_convert_makes_it_a_part_of_the_layer(made, target, act):
    model, x = shaken(nn.Sequential(nn.Conv2d(C, C, 1), made())), image()
    twin, keys = copy.deepcopy(model), list(model.state_dict())
    conversion = ns.convert(model, target)
    assert model[1].bend == act
    assert list(model.state_dict()) == keys
    for mode in (False, True):
        torch.testing.assert_close(model.train(mode)(x), twin.train(mode)(x), rtol=1e-4, atol=1e-5)
    assert "activation" in str(conversion)
    conversion.undo()
    assert type(model[1]) is type(made())


def test_convert_between_ours_and_back_to_torch():
    model = nn.Sequential(ns.BatchNorm(C, act="relu"))
    ns.convert(model, "switchable")
    assert model[0].bend == Activation("relu")
    ns.convert(model, "evo_s0")  # ends in an activation of its own: the other stays behind it
    assert isinstance(model[0], Adapted)
    assert isinstance(model[0].act, nn.ReLU)
    ns.convert(model, "group:act=silu")
    assert model[0].bend == Activation("silu")
    ns.convert(model, nn.GroupNorm)
    assert isinstance(model[0].act, nn.SiLU)
    assert isinstance(model[0].norm, nn.GroupNorm)


def test_convert_leaves_what_stands_between_or_is_looked_at():
    dropped = nn.Sequential(BatchNormAct2d(C, drop_layer=lambda: nn.Dropout(0.5)))
    ns.convert(dropped, "group")
    assert isinstance(dropped[0].act, nn.ReLU)
    assert isinstance(dropped[0].drop, nn.Dropout)
    other = nn.Sequential(BatchNormAct2d(C, act_layer=lambda inplace: nn.Tanh()))
    ns.convert(other, "group")
    assert isinstance(other[0].act, nn.Tanh)
    watched = nn.Sequential(BatchNormAct2d(C))
    watched[0].act.register_forward_hook(lambda *_: None)
    ns.convert(watched, "group")
    assert len(watched[0].act._forward_hooks) == 1


def test_fold_leaves_it():
    model = shaken(nn.Sequential(nn.Conv2d(C, C, 3), ns.BatchNorm(C, act="hardswish"), nn.Conv2d(C, C, 1))).eval()
    x = image()
    expected = model(x)
    result = ns.fold(model, x)
    assert not result.left
    assert isinstance(model[1], nn.Hardswish)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    before = shaken(nn.Sequential(ns.BatchNorm(C, act="relu"), nn.Conv2d(C, C, 1))).eval()
    assert "its activation comes before what follows it" in ns.fold(before, x).left["0"]

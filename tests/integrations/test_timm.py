"""Our names in timm. Where timm cannot be imported, against a stand-in whose two tables are looked up as timm 1.0.31 does it."""

import copy
import functools
import pickle
import sys
import types
import warnings

import pytest
import torch
from helpers import ONE_INPUT
from torch import nn

import normsmith as ns


def real():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except ImportError:
        return None
    return timm


def stand_in():
    """timm.layers.create_norm and create_norm_act: names without underscores, classes and partials, activations where asked for."""
    timm, layers = types.ModuleType("timm"), types.ModuleType("timm.layers")
    norms, acts = types.ModuleType("timm.layers.create_norm"), types.ModuleType("timm.layers.create_norm_act")

    class BatchNormAct2d(nn.BatchNorm2d):
        pass

    norms._NORM_MAP = {"batchnorm": nn.BatchNorm2d, "groupnorm": nn.GroupNorm}
    norms._NORM_TYPES = set(norms._NORM_MAP.values())
    acts._NORM_ACT_MAP = {"batchnorm": BatchNormAct2d}
    acts._NORM_ACT_TYPES = {BatchNormAct2d}
    acts._NORM_ACT_REQUIRES_ARG = {BatchNormAct2d}

    def get_norm_layer(norm_layer):
        return norms._NORM_MAP[norm_layer.replace("_", "").lower()]

    def get_norm_act_layer(norm_layer, act_layer=None):
        if isinstance(norm_layer, str):
            layer = acts._NORM_ACT_MAP[norm_layer.replace("_", "").lower().split("-")[0]]
        else:
            assert norm_layer in acts._NORM_ACT_TYPES
            layer = norm_layer
        return functools.partial(layer, act_layer=act_layer) if layer in acts._NORM_ACT_REQUIRES_ARG else layer

    def create_act_layer(name, inplace=None, **options):
        kind = {"silu": nn.SiLU, "relu": nn.ReLU}[name] if isinstance(name, str) else name
        return None if kind is None else kind(inplace=inplace, **options)

    layers.create_act_layer, layers.get_norm_layer, layers.get_norm_act_layer = (
        create_act_layer,
        get_norm_layer,
        get_norm_act_layer,
    )
    return {m.__name__: m for m in (timm, layers, norms, acts)}


@pytest.fixture(params=["real", "stand-in"])
def layers(request, monkeypatch):
    """timm.layers, with our names in it."""
    if request.param == "real":
        timm = real()
        if timm is None:
            pytest.skip("timm cannot be imported here; it needs torchvision")
        found = timm.layers
    else:
        modules = stand_in()
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        found = modules["timm.layers"]
    names = ns.register_with_timm()
    assert ns.register_with_timm() == names  # again changes nothing
    assert set(names) == set(ONE_INPUT)
    return found


def test_names_give_our_layers(layers):
    for name in ("switchable", "filter_response", "FilterResponse", "group"):
        layer = layers.get_norm_layer(name)(8, device=None, dtype=torch.float64)
        assert type(layer) is ns.catalog()[{"FilterResponse": "filter_response"}.get(name, name)].load()
    assert layers.get_norm_layer("groupnorm") is not ns.GroupNorm


def test_with_an_activation(layers):
    made = layers.get_norm_act_layer("switchable", "silu")
    layer = made(8, inplace=True, eps=1e-3, drop_layer=nn.Identity)
    assert isinstance(layer, ns.SwitchableNorm)
    assert layer.eps == 1e-3
    plain = ns.SwitchableNorm(8, eps=1e-3)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    assert torch.equal(layer(x), nn.functional.silu(plain(x)))
    layer(x).sum().backward()
    assert torch.equal(made(8, apply_act=False)(x), ns.SwitchableNorm(8)(x))
    assert (layers.get_norm_act_layer("group", nn.ReLU)(8)(x) >= 0).all()
    assert isinstance(layers.get_norm_act_layer(type(layer), "silu")(8), type(layer))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is type(layer)


def test_whole_models():
    timm = real()
    if timm is None:
        pytest.skip("timm cannot be imported here; it needs torchvision")
    ns.register_with_timm()
    for name, kind in (
        ("resnet18", ns.SwitchableNorm),
        ("efficientnet_b0", ns.SwitchableNorm),
        ("regnetx_002", ns.SwitchableNorm),
    ):
        model = timm.create_model(name, norm_layer="switchable", num_classes=3)
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [m for m in model.modules() if isinstance(m, kind)]
        model(torch.randn(2, 3, 64, 64)).sum().backward()


def test_without_timm_or_with_another(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("timm.layers", "timm.layers.create_norm", "timm.layers.create_norm_act"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ns.DependencyError, match="expects timm: got"):
        ns.register_with_timm()
    modules = stand_in()
    del modules["timm.layers.create_norm"]._NORM_MAP
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ns.DependencyError, match="without _NORM_MAP"):
        ns.register_with_timm()

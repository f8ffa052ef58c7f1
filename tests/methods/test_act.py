"""`act`: every method of the catalog with an activation, against torch's function behind the same method without one."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import CASES, CHANNELS, assert_same, example
from torch import nn

import normsmith as ns
from normsmith.activation import MODULES, Activation

ACTS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "leaky_relu:negative_slope=0.2": lambda y: F.leaky_relu(y, 0.2),
    "relu6": F.relu6,
    "hardswish": F.hardswish,
}
OPEN = [case for case in CASES if not case.make().activates]
SHAPES = [(6, CHANNELS, 5, 6), (4, CHANNELS, 7)]
rotated = [
    (case, list(ACTS)[i % len(ACTS)], "cpu" if i // 6 % 2 else "reference", SHAPES[i % 2]) for i, case in enumerate(OPEN)
]


def outputs_and_gradients(layer, x, act=None, **extra):
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf, **layer.example_inputs(leaf), **extra)
    y = y if act is None else act(y)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    dy = example(tuple(y.shape), seed=4).to(y.dtype)
    return [y, *torch.autograd.grad(y, [leaf, *parameters], dy, allow_unused=True, materialize_grads=True)]


def assert_all_same(found, expected, what=""):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same(a, b, f"result {i} {what}")


def state_of(layer):
    return {key: t for key, t in layer.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize(("case", "act", "backend", "shape"), rotated, ids=str)
def test_every_method_with_an_activation(case, act, backend, shape):
    x = example(shape)
    for training in (True, False):
        layer, plain = case.make(act=act).train(training), case.make().train(training)
        with ns.backend(backend):
            assert_all_same(outputs_and_gradients(layer, x), outputs_and_gradients(plain, x, ACTS[act]), f"{training=}")
        assert state_of(layer).keys() == state_of(plain).keys()
        for key, t in state_of(layer).items():
            assert_same(t, state_of(plain)[key], key)
    assert f"act={act}" in repr(layer)
    assert layer.activates
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    copies.append(type(layer)(CHANNELS, dtype=torch.float64, **layer.options()).train(False))
    copies[-1].load_state_dict(layer.state_dict())
    extra = layer.example_inputs(x)
    assert all(torch.equal(other(x, **extra), layer(x, **extra)) for other in copies)
    assert layer.torch_twin() is None


@pytest.mark.parametrize("name", ["batch", "group", "layer", "rms", "instance", "position", "ghost", "filtered"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_by_whatever_does_the_work(name, memory_format):
    x = example((4, CHANNELS, 5, 6)).contiguous(memory_format=memory_format)
    mask = torch.rand((4, 5, 6), generator=torch.Generator().manual_seed(1)) > 0.3
    act = list(ACTS)[len(name) % len(ACTS)]
    layer, plain = (ns.make(name, CHANNELS, dtype=torch.float64, **more) for more in ({"act": act}, {}))
    expected = outputs_and_gradients(plain, x, ACTS[act])
    for backend in ("auto", "torch", "cpu", "reference"):
        with ns.backend(backend):
            assert_all_same(outputs_and_gradients(layer, x), expected, backend)
    with ns.backend("cpu"):
        found, expected = outputs_and_gradients(layer, x, mask=mask), outputs_and_gradients(plain, x, ACTS[act], mask=mask)
    assert_all_same(found, expected, "with a mask")
    assert (found[0].movedim(1, -1)[~mask] == 0).all()


@pytest.mark.parametrize("act", ACTS)
def test_derivatives_to_the_second(act):
    layer, x = ns.make("batch", 3, act=act, dtype=torch.float64), example((4, 3, 2)).requires_grad_()
    with ns.backend("cpu"):
        assert torch.autograd.gradcheck(layer, (x,))
        if act not in {"relu6", "hardswish"}:  # of which torch has no second derivative but zero
            assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("name", ["batch", "group"])
def test_where_plain_operations_are_wanted(name):
    layer, plain = (ns.make(name, CHANNELS, **more).eval() for more in ({"act": "silu"}, {}))
    x = example((3, CHANNELS, 4), torch.float32)
    expected = F.silu(plain(x))
    with ns.backend("cpu"):
        assert_same(torch.func.vmap(layer)(x.unsqueeze(0))[0], expected, "vmap")
        exported = torch.export.export(layer, (x,)).module()
        assert_same(exported(x), expected, "export")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    for name in ("batch", "group"):
        layer, plain = (ns.make(name, CHANNELS, **more) for more in ({"act": "silu"}, {}))
        x = example((4, CHANNELS, 8), dtype)
        with ns.backend("reference"), torch.autocast("cpu", dtype=dtype):
            y = layer(x)
        assert y.dtype == dtype
        assert_same(y, F.silu(plain(x)), name)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_nan_goes_through_in_evaluation(backend):
    for act, function in ACTS.items():
        layer, plain = (ns.make("batch", 2, affine=False, **more).eval() for more in ({"act": act}, {}))
        x = torch.tensor([[[math.nan, 1.0, -math.inf, 0.0]] * 2], requires_grad=True)
        with ns.backend(backend):
            y = layer(x)
        expected = function(plain(x))
        torch.testing.assert_close(y, expected, equal_nan=True, msg=act)
        found = torch.autograd.grad(y, x, torch.ones_like(y))[0]
        torch.testing.assert_close(found[..., 1:], torch.autograd.grad(expected.sum(), x)[0][..., 1:], equal_nan=True, msg=act)


def test_nothing_of_the_size_of_the_input_is_kept_but_the_input():
    held = []
    layer, x = ns.make("batch", 4, act="silu"), torch.randn(8, 4, 50, requires_grad=True)
    with ns.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), t)[1], lambda t: t):
        layer(x)
    large = [t for t in held if t.numel() >= x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "group:act=gelu",
            "GroupNorm expects act to be one of relu, relu6, leaky_relu, silu, hardswish: got 'gelu'; other",
        ),
        ("group:act=3", "GroupNorm expects act as a word, one of relu, .*: got 3; other activations follow as layers"),
        (
            "batch:act=relu:negative_slope=0.1",
            "act='relu' of BatchNorm expects no options: got 'negative_slope'; leave it out",
        ),
        ("batch:act=leaky_relu:slope=0.1", "act='leaky_relu' of BatchNorm expects .* did you mean 'negative_slope'"),
        (
            "batch:act=leaky_relu:negative_slope=x",
            "BatchNorm expects negative_slope as a finite number: got 'x' in act=.*; try 0.01",
        ),
        ("evo_s0:act=relu", "EvoNormS0 expects options among .*: got 'act'"),
        ("evo_b0:act=relu", "EvoNormB0 expects no act: got 'relu' for a method that ends in an activation; leave it out"),
        ("filter_response:act=relu", "FilterResponseNorm expects no act"),
    ],
)
def test_what_is_refused(spec, sentence):
    with pytest.raises(ns.OptionError, match=sentence):
        ns.make(spec, CHANNELS)


def test_words_and_modules():
    layer = ns.make("group:act=leaky_relu:negative_slope=0.2,num_groups=4", 8)
    assert (layer.num_groups, layer.bend) == (4, Activation("leaky_relu", 0.2))
    assert ns.make("filter_response:threshold=false,act=relu", 8).activates
    for name in MODULES:
        act = ns.make("batch", 8, act=name).bend
        assert Activation.of(act.module()) == act
        y = torch.linspace(-8, 8, 33)
        assert torch.equal(act(y), act.module()(y))
    assert Activation.of(nn.GELU()) is None


def test_a_slope_of_zero_is_kept():
    layer = ns.make("batch:act=leaky_relu:negative_slope=0", 4)
    assert ns.BatchNorm(4, act=layer.options()["act"]).bend == layer.bend

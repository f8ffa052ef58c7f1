"""Norms go into their neighbours where that changes nothing, and stay where it would."""

import contextlib

import pytest
import torch
from helpers import CASES, CHANNELS, ONE_INPUT, Case, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval, parametrizations, parametrize, prune

import normsmith as ns

C = 4


def shaken(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in evaluation, with statistics and affine maps that are not ones and zeros."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.to(dtype).eval()


class Held:
    """What no walk through containers finds."""

    def __init__(self, tensor):
        self.tensor = tensor


class Wired(nn.Module):
    """A model whose forward is a function of itself and x, so that a test shows its wiring."""

    def __init__(self, wiring, **layers):
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x, **more):
        return self.wiring(self, x, **more)


def conv(padding=0, **options):
    return nn.Conv2d(C, C, 3, padding=padding, **options)


def image(size=8, dtype=torch.float64):
    return torch.randn(2, C, size, size, dtype=dtype)


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_identical(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)


def folds(model, x, names, **tolerance):
    """Fold, check that exactly these norms went, that outputs are the same, and that undo is exact; return the result."""
    model = shaken(model) if not tolerance else model
    before, expected = state(model), model(x)
    result = ns.fold(model, x)
    assert sorted(result.folded) == sorted(names), result.left
    assert_same(model(x), expected, **{"tolerance": 1e-12, **tolerance})
    folded = state(model)
    result.undo()
    assert_identical(model, before)
    assert torch.equal(model(x), expected)
    again = ns.fold(model, x)
    assert_identical(model, folded)
    return again


def stays(model, x, reason, name="norm"):
    """Fold, check that the norm stays for this reason and that not a bit of the model is other than before."""
    model = shaken(model)
    before = state(model)
    result = ns.fold(model, x)
    assert reason in result.left[name], result.left[name]
    assert_identical(model, before)
    assert not result._carving.weights  # no copies are held of what was not changed
    return result


CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 3, 9)),
    "2d": (nn.Conv2d(3, 6, (3, 2), padding=1, dilation=2), nn.BatchNorm2d(6), (2, 3, 9, 8)),
    "3d": (nn.Conv3d(3, 6, 2, padding=1), nn.BatchNorm3d(6), (2, 3, 4, 5, 4)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 7)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), (2, 3, 7, 7)),
    "reflect": (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (2, 3, 7, 7)),
    "transposed 1d": (nn.ConvTranspose1d(3, 6, 3, stride=2), nn.BatchNorm1d(6), (2, 3, 9)),
    "transposed 2d": (nn.ConvTranspose2d(3, 6, 3, padding=1, output_padding=1, stride=2), nn.BatchNorm2d(6), (2, 3, 5, 5)),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "transposed 3d": (nn.ConvTranspose3d(3, 6, 2), nn.BatchNorm3d(6), (2, 3, 4, 4, 4)),
    "linear": (nn.Linear(3, 6), nn.BatchNorm1d(6), (5, 3)),
    "linear without bias": (nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), (5, 3)),
    "sync": (nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), (2, 3, 7, 7)),
    "no affine": (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), (2, 3, 7, 7)),
    "no affine, no bias": (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False, eps=0.1), (2, 3, 7, 7)),
    "instance with statistics": (nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (2, 3, 7, 7)),
}


@pytest.mark.parametrize(("layer", "norm", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_into_the_layer_before(layer, norm, shape):
    result = folds(nn.Sequential(layer, norm, nn.ReLU()), torch.randn(shape, dtype=torch.float64), ["1"])
    assert result.report[0].into == ("0",)
    assert 0 < result.report[0].error < 1e-13
    assert result.error.relative < 1e-13


# torch fuses no instance norm, and scales the wrong channels of a transposed convolution in groups.
@pytest.mark.parametrize("key", sorted(CONVOLUTIONS.keys() - {"instance with statistics", "transposed grouped"}))
def test_the_same_weights_as_torch_fuses(key):
    layer, norm, shape = CONVOLUTIONS[key]
    model = shaken(nn.Sequential(layer, norm))
    fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    more = {"transpose": True} if "transposed" in key else {}
    twin = fuse(layer, norm, **more)
    ns.fold(model, torch.randn(shape, dtype=torch.float64))
    assert_same(model[0].weight, twin.weight, tolerance=1e-14)
    assert_same(model[0].bias, twin.bias, tolerance=1e-14)


AFTER = {
    "1d": (nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "2d": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, stride=2, dilation=2), (2, 4, 9, 9)),
    "3d": (nn.BatchNorm3d(4), nn.Conv3d(4, 6, 2, bias=False), (2, 4, 4, 4, 4)),
    "grouped": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "linear": (nn.BatchNorm1d(4), nn.Linear(4, 6, bias=False), (5, 4)),
    "reflected padding": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7)),
    "no padding by name": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 7)),
    "one position": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same"), (2, 4, 7, 7)),
}


@pytest.mark.parametrize(("norm", "layer", "shape"), AFTER.values(), ids=AFTER)
def test_into_the_layer_after(norm, layer, shape):
    result = folds(nn.Sequential(nn.ReLU(), norm, layer), torch.randn(shape, dtype=torch.float64), ["1"])
    assert result.report[0].into == ("2",)


@pytest.mark.parametrize("padding", [1, (0, 1), "same"])
def test_zeros_around_the_norm_are_not_zeros_before_it(padding):
    stays(
        Wired(lambda m, x: m.conv(m.norm(x.relu())), norm=nn.BatchNorm2d(C), conv=conv(padding)),
        image(),
        "its input comes from relu; conv after it pads with zeros",
    )


def test_a_transposed_convolution_after_it():
    model = Wired(lambda m, x: m.up(m.norm(x)), norm=nn.BatchNorm2d(C), up=nn.ConvTranspose2d(C, C, 3))
    stays(model, image(), "up after it is transposed")


def test_before_is_preferred_and_a_layer_takes_both_sides():
    model = nn.Sequential(
        conv(), nn.BatchNorm2d(C), conv(), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C), conv(), nn.BatchNorm2d(C)
    )
    result = folds(model, image(14), ["1", "3", "5", "7"])
    assert [row.into for row in result.report] == [("0",), ("2",), ("6",), ("6",)]


def test_a_norm_of_several_convolutions_goes_into_each():
    model = Wired(
        lambda m, x: m.norm(m.a(x)).relu() + m.norm(m.b(x)), a=conv(), b=conv(bias=False, dilation=1), norm=nn.BatchNorm2d(C)
    )
    assert folds(model, image(), ["norm"]).report[0].into == ("a", "b")


def test_a_norm_read_by_several_convolutions_goes_into_each():
    model = Wired(lambda m, x: m.a(y := m.norm(x.relu())) + m.b(y), a=conv(), b=conv(bias=False), norm=nn.BatchNorm2d(C))
    assert folds(model, image(), ["norm"]).report[0].into == ("a", "b")


def test_a_convolution_used_twice():
    two = {"conv": conv(), "norm": nn.BatchNorm2d(C), "other": nn.BatchNorm2d(C)}
    result = stays(
        Wired(lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x + 1)), **two), image(), "conv, used 2 times, also goes to"
    )
    assert "conv, used 2 times, also goes to norm" in result.left["other"]
    stays(Wired(lambda m, x: m.norm(m.conv(x)) + m.conv(x + 1), **two), image(), "conv, used 2 times, also goes to add")
    # with the norm behind it every time, the two are one layer wherever they are used
    folds(Wired(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)).relu())), conv=conv(), norm=nn.BatchNorm2d(C)), image(), ["norm"])


def test_a_norm_used_on_something_else_too():
    model = Wired(lambda m, x: m.norm(m.conv(x)) + m.norm(x[..., 2:, 2:]), conv=conv(), norm=nn.BatchNorm2d(C))
    stays(model, image(), "its input comes from slice")


WIRINGS = {
    "relu between": (lambda m, x: m.norm(m.conv(x).relu()), "its input comes from relu"),
    "relu in place between": (lambda m, x: m.norm(m.conv(x).relu_()), "the output of conv also goes to relu_"),
    "residual": (lambda m, x: (y := m.conv(x)) + m.norm(y), "the output of conv also goes to add"),
    "residual later": (lambda m, x: m.norm(y := m.conv(x)).relu() + y.mean(), "the output of conv also goes to mean"),
    "gate": (lambda m, x: m.norm(y := m.conv(x)) * (1 if y.sum() > 0 else 2), "the output of conv also goes to sum"),
    "view kept": (lambda m, x: (m.norm(y := m.conv(x)), y.view(-1)), "the output of conv also goes to view"),
    "returned": (lambda m, x: (m.norm(y := m.conv(x)), y), "the output of conv is returned or kept"),
    "returned deep inside": (
        lambda m, x: {"y": m.norm(y := m.conv(x)), "more": [Held(y)]},
        "the output of conv is returned or kept",
    ),
    "reshaped": (lambda m, x: m.norm(m.conv(x).flatten(2).unsqueeze(3)), "its input comes from unsqueeze"),
    "transposed": (lambda m, x: m.norm(m.conv(x).transpose(2, 3)), "its input comes from transpose"),
    "input": (lambda m, x: m.norm(x) + m.conv(x).mean(), "its input comes from an input of the model; its output goes to add"),
    "output": (lambda m, x: m.norm(x.relu()), "its output is returned or kept by the model"),
    "output beside": (lambda m, x: (m.conv(y := m.norm(x.relu())), y), "its output is returned or kept by the model"),
    "weight read": (lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean(), "conv lends its weight to mean"),
    "statistics read": (lambda m, x: m.norm(m.conv(x)) * m.norm.running_var.mean(), "its own tensors are also used by mean"),
    "attribute read": (lambda m, x: m.norm(m.conv(x)) * m.norm.eps, "without it the model raises AttributeError"),
    "not reached": (lambda m, x: m.conv(x), "the example does not reach it"),
    "twice on one": (lambda m, x: (m.norm(y := m.conv(x)), m.norm(y).relu_()), "it reads one tensor twice"),
    "other reader after": (lambda m, x: m.conv(y := m.norm(x.relu())).mean() + y, "its output goes to add"),
    "convolution elsewhere after": (
        lambda m, x: m.conv(m.norm(x.relu())).mean() + m.conv(x),
        "conv after it also runs on something",
    ),
}


@pytest.mark.parametrize(("wiring", "reason"), WIRINGS.values(), ids=WIRINGS)
def test_wiring_that_forbids(wiring, reason):
    model = Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C))
    stays(model, image(), reason)


def with_gradients(m, x):
    with torch.enable_grad():
        return m.norm(m.conv(x.clone().requires_grad_())).detach()


def in_a_cycle(m, x):
    cycle = [m.conv(x)]
    cycle.append(cycle)
    return m.norm(cycle[0])


ALLOWED = {
    "identity and dropout between": lambda m, x: m.norm(nn.functional.dropout(nn.Identity()(m.conv(x)), training=m.training)),
    "shape looked at": lambda m, x: m.norm(y := m.conv(x)).view(y.shape[0], -1),
    "no copy": lambda m, x: m.norm(m.conv(x).contiguous().to(x.dtype)),
    "returned after": lambda m, x: {"y": (m.norm(m.conv(x)), 3), "z": x},
    "written into after": lambda m, x: m.norm(m.conv(x)).add_(x[..., 1:-1, 1:-1]).relu_(),
    "with gradients": with_gradients,
    "in a cycle that nobody needs": in_a_cycle,
    "result unused": lambda m, x: (m.conv(x + 1), m.norm(m.conv(x)))[1],
}


@pytest.mark.parametrize("wiring", ALLOWED.values(), ids=ALLOWED)
def test_wiring_that_allows(wiring):
    model = shaken(Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C)))
    x = image()
    before = model(x)
    assert ns.fold(model, x).folded == ["norm"]
    after = model(x)
    for found, expected in zip(*((t if isinstance(t, Tensor) else t["y"][0],) for t in (after, before)), strict=True):
        assert_same(found, expected, tolerance=1e-12)


def test_what_only_the_outputs_betray():
    def wiring(m, x):
        y = m.norm(z := x.exp())
        z.add_(1)
        return m.one(m.conv(y))

    model = Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C), one=nn.Sequential(nn.ReLU(), conv(), nn.BatchNorm2d(C)))
    result = stays_beside(model, image(), {"norm": "the model's output would move by"})
    assert result.folded == ["one.2"]


def stays_beside(model, x, reasons):
    model = shaken(model)
    expected = model(x)
    result = ns.fold(model, x)
    assert result.left.keys() == reasons.keys(), result.left
    assert all(reason in result.left[name] for name, reason in reasons.items()), result.left
    assert_same(model(x), expected, tolerance=1e-12)
    result.undo()
    assert torch.equal(model(x), expected)
    return result


def test_the_culprits_are_found_among_many():
    def wiring(m, x):
        for i in range(7):
            norm = getattr(m, f"norm{i}")
            x = norm(getattr(m, f"conv{i}")(x)).relu() * (norm.eps if i in {2, 5} else 1)
        return x

    layers = {f"conv{i}": conv(1) for i in range(7)} | {f"norm{i}": nn.BatchNorm2d(C, eps=0.5) for i in range(7)}
    stays_beside(Wired(wiring, **layers), image(), {f"norm{i}": "without it the model raises AttributeError" for i in (2, 5)})


def prepared(change):
    model = nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv()).double().eval()
    changed = change(model)
    return changed if isinstance(changed, nn.Sequential) else model


def tie(model):
    model[3].weight = model[0].weight


def tie_by_view(model):
    model[3].weight = nn.Parameter(model[0].weight.data.view_as(model[0].weight))


def patch(model):
    forward = model[0].forward
    model[0].forward = forward


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


CHANGES = {
    "hook on the convolution": (lambda m: m[0].register_forward_hook(lambda *_: None), "0 has hooks"),
    "hook before the convolution": (lambda m: m[0].register_forward_pre_hook(lambda *_: None), "0 has hooks"),
    "hook on the norm": (lambda m: m[1].register_forward_hook(lambda *_: None), "it has hooks"),
    "backward hook": (lambda m: m[1].register_full_backward_hook(lambda *_: None), "it has hooks"),
    "forward put in place": (patch, "0 has a forward of its own"),
    "tied": (tie, "0 shares its weight (0.weight, 3.weight)"),
    "tied by a view": (tie_by_view, "0 shares its weight"),
    "weight norm": (lambda m: parametrizations.weight_norm(m[0]), "0 has a parametrised weight"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(m[0]), "0 has a parametrised weight"),
    "any parametrization": (lambda m: parametrize.register_parametrization(m[0], "bias", nn.ReLU()), "parametrised"),
    "old spectral norm": (lambda m: nn.utils.spectral_norm(m[0]), "0 has a weight that is not a parameter"),
    "pruned": (lambda m: prune.l1_unstructured(m[0], "weight", 0.5), "0 has a weight that is not a parameter"),
    "weights standardized": (
        lambda m: nn.Sequential(Standardized(C, C, 3), *list(m)[1:]),
        "its output would differ by",
    ),
    "no statistics": (
        lambda m: m.__setitem__(1, nn.BatchNorm2d(C, track_running_stats=False)),
        "it keeps no running statistics",
    ),
    "instance": (lambda m: m.__setitem__(1, nn.InstanceNorm2d(C)), "it keeps no running statistics"),
    "group": (lambda m: m.__setitem__(1, nn.GroupNorm(2, C)), "it keeps no running statistics"),
    "broken statistics": (lambda m: m[1].running_mean.fill_(float("inf")), "its statistics are not finite"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_layers_that_forbid(change, reason):
    torch.manual_seed(0)
    model = prepared(change).double().eval()
    x = image()
    before, expected = state(model), model(x)
    result = ns.fold(model, x)
    assert reason in result.left["1"], result.left
    assert_identical(model, before)
    assert torch.equal(model(x), expected) or not expected.isfinite().all()


# One answer for every method of the catalog: whether evaluation is a constant map per channel is asked, not listed.
CONSTANT = {"batch", "ghost", "renorm", "frozen", "noisy", "population", "filtered", "kalman"}
OPTIONS = [
    *((case, case.name in CONSTANT) for case in CASES if case.name in ONE_INPUT and case.name != "batch_instance"),
    (Case("instance", {"track_running_stats": True, "affine": True}), True),
    (Case("ibn", {"ratio": 0.0}), True),
    (Case("batch_instance", {"initial": 0.0}), False),
    (Case("population", {"emulate": 4}), True),
    (Case("batch", {"affine": False}), True),
    (Case("batch", {"track_running_stats": False}), False),
]


@pytest.mark.parametrize(("case", "constant"), OPTIONS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_method_of_the_catalog(case, constant, training):
    norm = case.make()
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), norm, nn.Conv2d(CHANNELS, 3, 1)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    if case.entry.random:
        norm._forward_pre_hooks.clear()
    before, expected = state(model), model(x)
    result = ns.fold(model.train(training), x)
    assert all(module.training == training for module in model.modules())
    assert bool(result.folded) == constant, result.left
    assert_same(model.eval()(x), expected, tolerance=1e-12)
    result.undo()
    assert_identical(model, before)


def test_a_condition_a_style_or_a_mask_is_more_than_the_input():
    for name, more in (
        *((name, torch.tensor([0, 1])) for name in ("conditional", "context")),
        ("adain", torch.randn(2, C, 5, 5).double()),
    ):
        model = Wired(lambda m, x, more=more: m.norm(m.conv(x), more), conv=conv(), norm=ns.make(name, C)).double()
        assert ns.fold(model, image()).left == {"norm": "it takes more than its input"}
    masked = Wired(lambda m, x, mask: m.norm(m.conv(x), mask=mask), conv=conv(), norm=ns.BatchNorm(C)).double()
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    assert ns.fold(masked, {"x": image(), "mask": mask}).left == {"norm": "it takes more than its input"}
    reason = ns.fold(masked, {"x": image(), "mask": None}).left["norm"]  # what is left in its place takes no mask=
    assert reason == "without it the model raises TypeError: Identity.forward() got an unexpected keyword argument 'mask'"


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: drop and activation are inside."""

    def __init__(self, features, act, drop=None):
        super().__init__(features)
        self.drop = nn.Identity() if drop is None else drop
        self.act = act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def test_a_fused_activation_stays():
    act, drop = nn.ReLU(inplace=True), nn.Dropout()
    model = nn.Sequential(
        conv(), NormAct(C, act), conv(), NormAct(C, nn.Identity()), conv(), NormAct(C, act, drop), NormAct(C, act), conv()
    )
    result = folds(model, image(14), ["1", "3", "5"])
    assert result.left == {"6": "its input comes from 5; its activation comes before what follows it"}
    assert model[1] is act
    assert isinstance(model[3], nn.Identity)
    assert list(model[5]) == [drop, act]


def test_after_convert():
    model = shaken(nn.Sequential(conv(), NormAct(C, nn.ReLU()), conv(), nn.BatchNorm2d(C)))
    ns.convert(model, "frozen")
    result = folds(model, image(), ["1", "3"])
    assert not result.left


class FrozenElsewhere(nn.Module):
    """As torchvision's FrozenBatchNorm2d: nothing but four buffers and a formula."""

    def __init__(self, features):
        super().__init__()
        self.eps = 1e-3
        for key in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(key, torch.rand(features) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class Clipped(FrozenElsewhere):
    def forward(self, x):
        return super().forward(x).clamp(-4, 4)


def test_a_class_nobody_knows_is_asked():
    folds(nn.Sequential(conv(), FrozenElsewhere(C)).double(), image(), ["1"], tolerance=1e-12)
    model = nn.Sequential(conv(), Clipped(C)).double()  # which this example does not reach
    assert ns.fold(model, image()).left == {"1": "its evaluation is not one constant map per channel"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_every_precision(dtype, offset):
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv(bias=False), nn.BatchNorm2d(C)), dtype)
    model[1].running_mean += offset  # a mean far above the spread: the norm itself loses digits there
    x = image(dtype=dtype)
    before, expected = state(model), model(x)
    result = ns.fold(model, x)
    assert result.folded == ["1", "4"], result.left
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert_same(model(x), expected, tolerance={torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.2))
    assert result.error.relative <= {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.2)
    result.undo()
    assert_identical(model, before)


def test_the_sum_is_done_in_float64():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C)), torch.bfloat16)
    exact = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C)))
    exact.load_state_dict(model.state_dict())
    ns.fold(model, image(dtype=torch.bfloat16))
    ns.fold(exact, image())
    assert torch.equal(model[0].weight, exact[0].weight.bfloat16())
    assert torch.equal(model[0].bias, exact[0].bias.bfloat16())


def test_a_norm_in_float32_of_a_half_precision_convolution():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C)), torch.float32)
    model[0].bfloat16()
    x = image(dtype=torch.bfloat16)
    expected = model(x)
    assert ns.fold(model, x).folded == ["1"]
    assert model[0].weight.dtype == torch.bfloat16
    assert_same(model(x), expected, tolerance=0.1)


def test_under_autocast():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv(), nn.BatchNorm2d(C)), torch.float32)
    x = image(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        assert ns.fold(model, x).folded == ["1", "4"]
        assert_same(model(x), expected, tolerance=0.1)


def test_parameters_stay_the_objects_they_are():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), conv(bias=False), nn.BatchNorm2d(C)))
    for weight in (model[0].weight, model[3].weight):
        weight.requires_grad_(False)
    own = model[0].weight, model[0].bias, model[3].weight
    result = ns.fold(model, image())
    assert (model[0].weight, model[0].bias, model[3].weight) == own
    assert [p.requires_grad for p in model.parameters()] == [False, True, False, False]
    assert not model[3].bias.requires_grad
    result.undo()
    assert model[3].bias is None
    assert (model[0].weight, model[0].bias, model[3].weight) == own


def test_a_norm_shared_by_parents_leaves_all_of_them():
    norm = nn.BatchNorm2d(C)
    model = nn.ModuleDict({"a": nn.Sequential(conv(), norm), "b": nn.Sequential(conv(), norm)})
    whole = Wired(lambda m, x: m.parts["a"](x) + m.parts["b"](x), parts=model)
    result = folds(whole, image(), ["parts.a.1"])
    assert isinstance(model["a"][1], nn.Identity)
    assert isinstance(model["b"][1], nn.Identity)
    assert result.report[0].into == ("parts.a.0", "parts.b.0")


def test_nothing_is_left_behind_when_the_model_raises():
    def wiring(m, x):
        m.norm(m.conv(x))
        torch.rand(1)
        raise RuntimeError("on purpose")

    model = shaken(Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C)))
    model.train()
    model.norm.eval()
    before, x, random = state(model), image(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"):
        ns.fold(model, x)
    assert_identical(model, before)
    assert [m.training for m in (model, model.conv, model.norm)] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_buffers_random_state_and_example_are_put_back():
    def wiring(m, x):
        m.count += 1
        m.last = x.mean()
        return m.norm(m.conv(x.mul_(2))) + torch.rand(1, dtype=x.dtype) + m.count

    model = shaken(Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C)))
    model.register_buffer("count", torch.zeros((), dtype=torch.float64))
    model.register_buffer("last", torch.ones((), dtype=torch.float64))
    model.train()
    x, random = image(), torch.get_rng_state()
    kept, count, last = x.clone(), model.count, model.last
    result = ns.fold(model, x)
    assert result.folded == ["norm"], result.left
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.count is count
    assert model.last is last
    assert count == 0
    assert last == 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_does_not_repeat_itself_is_left():
    calls = []

    def wiring(m, x):
        calls.append(1)
        return m.norm(m.conv(x)) * len(calls)

    stays(Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C)), image(), "the model does not repeat its own output")


def test_undo_of_a_model_that_is_not_as_it_was():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C)))
    result = ns.fold(model, image())
    result.undo()
    with pytest.raises(ns.ModelError, match="undo expects the model as fold left it: got one that was taken back already"):
        result.undo()
    for edit in (model.float, lambda: model.__setitem__(1, nn.ReLU())):
        result = ns.fold(model.double(), image())
        edit()
        with pytest.raises(ns.ModelError, match="edited, or moved since"):
            result.undo()
        if isinstance(model[1], nn.Identity):
            model.double()
            result.undo()


def test_training_after_folding_and_then_undo():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C)))
    before = state(model)
    result = ns.fold(model, image())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(image()).square().sum().backward()
    optimizer.step()
    result.undo()
    assert_identical(model, before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(C, C, 3)), "fold expects a model with norms: got one without"),
        (nn.Sequential(nn.LazyConv2d(C, 3), nn.BatchNorm2d(C)), "lazy layers know their sizes: got one that never ran"),
        ("resnet50", "fold expects a torch.nn.Module: got str"),
    ],
)
def test_models_nothing_can_be_said_about(model, message):
    with pytest.raises(ns.ModelError, match=message):
        ns.fold(model, image(dtype=torch.float32))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_wrapped_models_are_left():
    inner = nn.Sequential(conv(), nn.BatchNorm2d(C))
    left = "it is inside DataParallel: fold its .module, and wrap it again afterwards"
    assert ns.fold(nn.DataParallel(inner), image()).left == {"module.1": left}
    part = shaken(nn.Sequential(nn.DataParallel(inner), conv(), nn.BatchNorm2d(C)))
    assert ns.fold(part, image()).left == {"0.module.1": left}
    traced = nn.Sequential(torch.jit.trace(inner.eval(), image()), conv(), nn.BatchNorm2d(C)).double().eval()
    result = ns.fold(traced, image())
    assert result.folded == ["2"]
    assert result.left == {
        "0.1": "it is compiled by torch.jit: fold the Python module it was made of, and wrap it again afterwards"
    }


def test_compiled_parts_are_run_as_written_and_left():
    runs = []

    def backend(graph, inputs):
        return lambda *args: runs.append(1) or graph.forward(*args)

    inner = nn.Sequential(conv(), nn.BatchNorm2d(C))
    model = shaken(nn.Sequential(torch.compile(inner, backend=backend), conv(), nn.BatchNorm2d(C)))
    with torch.no_grad():
        model(image())
    before = len(runs)
    result = ns.fold(model, image())
    assert len(runs) == before == 1
    assert result.folded == ["2"]
    assert "compiled by torch.compile: fold its _orig_mod" in result.left["0._orig_mod.1"]
    with torch.no_grad():
        model(image())
    assert len(runs) == 2


def test_the_table_and_the_rows():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU(), nn.BatchNorm2d(C)))
    result = ns.fold(model, image())
    text = str(result)
    assert "1 of 2 norms folded" in text
    assert "left: its input comes from relu;" in text
    first, second = result.report
    assert (first.layer, first.kind, first.into, first.reason) == ("1", "BatchNorm2d", ("0",), "")
    assert (second.into, second.error, second.relative) == ((), None, None)
    assert f"{first.error:.1e}" in text
    assert result.model is model
    assert result.folded == ["1"]
    assert list(result.left) == ["3"]


def test_channels_elsewhere_than_in_dimension_1():
    x = torch.randn(3, C, 5, dtype=torch.float64)
    reason = "puts out a tensor of shape (3, 4, 5), whose channels are not in dimension 1"
    stays(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(C)), x, f"0 {reason}", "1")
    tokens = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(C), nn.Linear(5, 5))
    stays(tokens, x, "2 after it takes a tensor of shape (3, 4, 5), whose channels are not in dimension 1", "1")


def test_a_norm_that_changes_the_type():
    model = nn.Sequential(conv().bfloat16(), FrozenElsewhere(C))
    assert ns.fold(model, image(dtype=torch.bfloat16)).left["1"] == "it turns torch.bfloat16 into torch.float32"


def test_in_inference_mode_and_trained_after_it():
    model = shaken(nn.Sequential(conv(bias=False), nn.BatchNorm2d(C)))
    with torch.inference_mode():
        assert ns.fold(model, image()).folded == ["1"]
    model(image()).sum().backward()
    assert model[0].bias.grad is not None
    assert not model[0].bias.is_inference()
    with torch.inference_mode():
        model = shaken(nn.Sequential(conv(bias=False), nn.BatchNorm2d(C)))
    assert "0 has a weight made in inference mode" in ns.fold(model, image()).left["1"]


def test_an_interrupted_fold_is_none():
    calls = []

    def wiring(m, x):
        calls.append(1)
        if len(calls) == 3:  # the first forward of the folded model
            raise KeyboardInterrupt
        return m.norm(m.conv(x))

    model = shaken(Wired(wiring, conv=conv(bias=False), norm=nn.BatchNorm2d(C)))
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        ns.fold(model, image())
    assert_identical(model, before)


def test_a_norm_that_failed_and_was_caught_is_not_blamed_for_what_follows():
    def wiring(m, x):
        with contextlib.suppress(ValueError):
            m.norm(x.flatten())
        return m.norm(y := m.conv(x)) + y

    stays(Wired(wiring, conv=conv(), norm=nn.BatchNorm2d(C)), image(), "the output of conv also goes to add")


def test_a_traced_graph_module_and_a_list_of_arguments():
    model = torch.fx.symbolic_trace(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU()))
    folds(model, image(), ["1"])
    two = Wired(lambda m, x, y: m.norm(m.conv(x)) + y, conv=conv(), norm=nn.BatchNorm2d(C))
    two.forward = lambda x, y: two.wiring(two, x, y)
    assert ns.fold(two.double(), [image(), image(6)]).folded == ["norm"]


def test_norms_in_a_row_take_one_call_each():
    model = shaken(nn.Sequential(conv(), nn.BatchNorm2d(C), nn.BatchNorm2d(C)))
    x = image()
    expected = model(x)
    first = ns.fold(model, x)
    assert first.left == {"2": "its input comes from 1; its output is returned or kept by the model"}
    assert ns.fold(model, x).folded == ["2"]
    assert_same(model(x), expected, tolerance=1e-12)


PIECES = st.sampled_from(["conv", "padded", "depthwise", "norm", "relu", "relu_", "linear", "drop", "shared", "pool", "add"])


@settings(max_examples=25, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=9), st.integers(0, 1000))
def test_random_chains(pieces, seed):
    torch.manual_seed(seed)
    shared = nn.BatchNorm2d(C)
    make = {
        "conv": conv,
        "padded": lambda: conv(1),
        "depthwise": lambda: nn.Conv2d(C, C, 1, groups=C, bias=False),
        "norm": lambda: nn.BatchNorm2d(C, eps=0.1),
        "relu": nn.ReLU,
        "relu_": lambda: nn.ReLU(inplace=True),
        "linear": lambda: nn.ConvTranspose2d(C, C, 3),
        "drop": nn.Dropout,
        "shared": lambda: shared,
        "pool": lambda: nn.AvgPool2d(3, 1, 1),
        "add": lambda: Wired(lambda m, x: x + m.conv(x), conv=conv(1)),
    }
    model = shaken(nn.Sequential(*(make[piece]() for piece in pieces), nn.BatchNorm2d(C)))
    x = image(30)
    before, expected = state(model), model(x)
    result = ns.fold(model, x)
    assert_same(model(x), expected, tolerance=1e-11)
    other = image(30)
    folded = model(other)
    result.undo()
    assert_identical(model, before)
    assert_same(folded, model(other), tolerance=1e-11)
    for first, second, name in zip(pieces, [*pieces[1:], "norm"], range(1, len(pieces) + 1), strict=True):
        if second == "norm" and first in {"conv", "padded", "depthwise", "linear"}:
            assert str(name) in result.folded, result.left
        if second == "norm" and first in {"relu", "relu_", "pool", "add"} and name == len(pieces):
            assert str(name) in result.left

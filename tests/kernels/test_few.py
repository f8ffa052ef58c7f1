"""Small tensors in one call each way: the numbers of the reference, whatever the statistics are made of."""

import weakref

import pytest
import torch
from helpers import CHANNELS, Case, assert_same, example

import normsmith as ns
from normsmith.affine import Standardized
from normsmith.combined import blend, by_channels
from normsmith.kernels import cpu, reference
from normsmith.kernels.cpu import few
from normsmith.normalize import normalize

CASES = [
    Case("batch"),
    Case("layer"),
    Case("group", {"num_groups": 3}),
    Case("instance", {"affine": True}),
    Case("rms"),
    Case("switchable"),
    Case("switchable", {"use_batch": False, "act": "leaky_relu"}),
    Case("sparse_switchable"),
    Case("ibn", {"ratio": 0.3}),
    Case("ghost", {"batch_size": 2}),
    Case("renorm", {"r_max": 1.2, "d_max": 0.1}),
    Case("renorm", {"affine": False, "act": "silu"}),
    Case("filter_response"),
    Case("kalman", {"affine": False}),
    Case("conditional"),
]
SHAPES = [(4, CHANNELS, 5, 3), (6, CHANNELS, 2, 2), (2, CHANNELS, 1, 9)]


@pytest.fixture
def made(monkeypatch):
    """What was standardized this way."""
    found, real = [], few._Few.__init__

    def build(self, *rest):
        found.append(self)
        real(self, *rest)

    monkeypatch.setattr(few._Few, "__init__", build)
    return found


def everything(case, dtype, backend, shape, kind):
    """The output, every gradient and every buffer of a layer with numbers of its own, by name."""
    layer = case.make(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in (
            (*layer.parameters(), layer.running_mean, layer.running_var)
            if hasattr(layer, "running_mean")
            else layer.parameters()
        ):
            if t is not None:
                t.add_(0.5 * torch.rand(t.shape, generator=generator, dtype=torch.float64).to(dtype))
    x, dy = (example(shape, torch.float32, seed=seed).to(dtype) for seed in (0, 9))
    if kind == "columns":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    with ns.backend(backend):
        y = layer(x, *layer.example_inputs(x).values())
        parameters = dict(layer.named_parameters())
        grads = torch.autograd.grad(y, (x, *parameters.values()), dy)
    buffers = {key: value for key, value in layer.named_buffers() if value.is_floating_point()}
    return {"y": y.detach(), **dict(zip(("dx", *parameters), grads, strict=True)), **buffers}


@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_of_the_reference(case, kind, made):
    for dtype, shape in zip((torch.float32, torch.float64, torch.float32), SHAPES, strict=True):
        found = everything(case, dtype, "cpu", shape, kind)
        assert len(made) == 1
        made.clear()
        for name, value in everything(case, torch.float64, "reference", shape, kind).items():
            assert_same(found[name], value, f"{case}: {name}")
            assert found[name].dtype == dtype


def test_weights_in_another_type_and_for_every_sample(made):
    """In float64 beside x in float32, and of shape (N, C)."""
    x, ids = example((4, CHANNELS, 3, 3), torch.float32), torch.tensor([0, 2, 1, 2])
    results = []
    for backend in ("cpu", "reference"):
        layer = ns.make("conditional", CHANNELS, num_conditions=3, dtype=torch.float64)
        with ns.backend(backend):
            y = layer(x, ids)
        results.append([y, *torch.autograd.grad(y.square().sum(), (layer.weight, layer.bias))])
    assert len(made) == 1
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert_same(a, b, tolerance=1e-4)


def test_what_nobody_can_do_at_once_is_done_as_elsewhere(made):
    """A mix that looks at a value first, or one that mixes in statistics which are not of x."""
    x = example((4, CHANNELS, 5), torch.float32).requires_grad_()
    other = reference.cell_moments(example((4, CHANNELS, 5), torch.float32, seed=3))
    half = torch.tensor([0.5, 0.5])
    mixes = [
        lambda cells, batch: Standardized(blend([cells, batch], cells.mean.detach()[0, :2], half), None, None, 1e-3),
        lambda cells, batch: Standardized(by_channels((other, 2), (batch, CHANNELS - 2)), None, None, 1e-3),
    ]
    for mix in mixes:
        results = []
        for backend in ("cpu", "reference"):
            with ns.backend(backend):
                y = normalize(x, mix, sees="both").y
            results.append([y, *torch.autograd.grad(y.square().sum(), x)])
        for a, b in zip(*results, strict=True):
            assert_same(a, b, tolerance=1e-4)
    assert not made


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_set(value):
    x = example((4, 6, 3, 3), torch.float32)
    x[2, 1, 0, 0] = value
    y = ns.make("ghost", 6, batch_size=2)(x)
    bad = torch.zeros_like(x, dtype=torch.bool)
    bad[2:, 1] = True
    assert (y.isfinite() != bad).all()


def test_values_that_are_asked_for_afterwards():
    x = example((4, 6, 5), torch.float32)
    cells, expected = cpu.cells_later(x), reference.cell_moments(x)
    sets = [cells, cells.pool(0), cells.pool(1), cells.pool_groups(3), cells.pool_runs(2)]
    awaited = [expected, expected.pool(0), expected.pool(1), expected.pool_groups(3), expected.pool_runs(2)]
    assert blend(sets[:3], torch.ones(3), torch.ones(3)).at_once(None, None, 1e-5, centered=True) is not None
    for found, other in zip(sets, awaited, strict=True):
        assert_same(found.mean, other.mean)
        assert_same(found.var, other.var)
        assert found.count == other.count


def test_after_a_backward_the_graph_keeps_nothing_of_x():
    x = example((4, 6, 5, 5), torch.float32)
    inner = x.clone().requires_grad_() * x
    with ns.backend("cpu"):
        y = ns.make("switchable", 6)(inner)
    kept = weakref.ref(inner)
    del inner
    y.sum().backward()
    assert kept() is None
    assert y.grad_fn is not None


def test_far_from_zero():
    """At mean 1000 times the standard deviation nothing is lost but the rounding of the mean."""
    x = (torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1000).float()
    for name in ("batch", "switchable", "ibn"):
        layer = ns.make(name, 6, affine=False)
        with ns.backend("cpu"):
            found = layer(x)
        with ns.backend("reference"):
            assert float((found - layer.double()(x.double())).detach().abs().max()) < 1e-4, name


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_statistic_may_be_switched_off(made, backend):
    x = example((4, CHANNELS, 3, 3), torch.float32).requires_grad_()
    layer, without = ns.SwitchableNorm(CHANNELS), ns.SwitchableNorm(CHANNELS)
    for logits, low in ((layer.mean_weight, -torch.inf), (without.mean_weight, -100.0)):
        with torch.no_grad():
            logits[1] = low
    results = []
    for one in (layer, without):
        with ns.backend(backend):
            y = one(x)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, one.mean_weight, one.var_weight))])
    for a, b in zip(*results, strict=True):
        assert_same(a, b, tolerance=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "reference", "auto"])
def test_shares_in_another_type(backend):
    x = example((4, CHANNELS, 3, 3), torch.float32).requires_grad_()
    layer = ns.SwitchableNorm(CHANNELS, dtype=torch.float64)
    with ns.backend(backend):
        grads = torch.autograd.grad(layer(x).pow(3).sum(), [x, *layer.parameters()])
    assert [g.dtype for g in grads] == [torch.float32, *[torch.float64] * 4]

"""Samples standardized while they are in the cache: the numbers of the reference, in every layout and shape, on any number of cores."""

import weakref

import pytest
import torch
from helpers import CHANNELS, Case, assert_same, example
from isolated import facts_of

import normsmith as ns
from normsmith.kernels import cpu, reference
from normsmith.kernels.cpu import few, stages
from normsmith.normalize import normalize

CASES = [
    Case("layer"),
    Case("group", {"num_groups": 3}),
    Case("group", {"num_groups": 6, "affine": False}),
    Case("instance", {"affine": True}),
    Case("instance", {"track_running_stats": True}),
    Case("rms"),
]
# One sample; few samples in several runs, which cores share; more samples than tasks; an odd number of positions.
SHAPES = [(1, 12, 2, 2), (2, 12, 97, 97), (37, 12, 5, 7), (18, 12, 41, 43), (3, 12, 2, 3, 5), (40, 12, 1, 1)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
ALL = {"measure", "settle", "transfer", "gather", "pull", "back"}


@pytest.fixture(autouse=True)
def _not_as_few(monkeypatch):
    """Small tensors have a way of their own, tested in test_few.py."""
    monkeypatch.setattr(few, "ELEMENTS", 0)


@pytest.fixture
def ran(monkeypatch):
    """The stages that ran."""
    names, real = set(), stages.Chain.run

    def run(self, *rest):
        names.update(stage.function.__name__ for stage in self.stages)
        real(self, *rest)

    monkeypatch.setattr(stages.Chain, "run", run)
    return names


def laid_out(x, kind):
    """The same values in a layout; of a sliced one between numbers that would be seen."""
    wide = torch.cat([x, torch.full_like(x, torch.nan)], 1) if kind.startswith("sliced") else x
    if kind.endswith("columns"):
        wide = wide.contiguous(memory_format=FORMATS[x.dim()])
    return wide[:, : x.shape[1]]


def everything(layer, x, dy, backend="cpu"):
    """The output, every gradient and every buffer, by name."""
    x = x.detach().requires_grad_()
    with ns.backend(backend):
        y = layer(x)
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(y, (x, *parameters.values()), dy)
    buffers = {key: value for key, value in layer.named_buffers() if value.is_floating_point()}
    return {"y": y.detach(), **dict(zip(("dx", *parameters), grads, strict=True)), **buffers}


@pytest.mark.parametrize("kind", ["columns", "rows", "sliced columns", "sliced rows"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_of_the_reference(shape, kind, ran):
    for i, case in enumerate(CASES):
        if case.name == "instance" and shape[2:] == (1, 1):
            continue
        dtype = (torch.float32, torch.float64)[(i + len(kind)) % 2]
        x, dy = (laid_out(example(shape, dtype, seed=seed), kind) for seed in (0, 9))
        ran.clear()
        found = everything(case.make(dtype), x, dy)
        assert (ran == ALL) != (kind.endswith("rows") and shape == (2, 12, 97, 97)), "few samples in rows are read twice"
        kept = FORMATS[len(shape)] if kind.endswith("columns") else torch.contiguous_format
        assert found["y"].is_contiguous(memory_format=kept)
        for name, value in everything(case.make(torch.float64), x.double(), dy.double(), "reference").items():
            assert_same(found[name], value, f"{case}: {name}")
            assert found[name].dtype == dtype


@pytest.mark.parametrize("name", ["layer", "instance", "group", "rms"])
def test_a_layer_more_precise_than_its_input(name):
    x, dy = (laid_out(example((20, 12, 5, 5), torch.float32, seed=seed), "columns") for seed in (0, 9))
    found, expected = (everything(Case(name).make(torch.float64), x, dy, backend) for backend in ("cpu", "reference"))
    for key, value in expected.items():
        assert_same(found[key], value, key, tolerance=2e-4)
        assert found[key].dtype == value.dtype


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("shape", [(40, 12, 33, 35), (2, 12, 97, 97)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape, kind):
    x, dy = (laid_out(example(shape, torch.float32, seed=seed), kind) for seed in (0, 9))
    threads, results = torch.get_num_threads(), []
    for number in (1, 2, 1):
        torch.set_num_threads(number)
        results.append(everything(Case("group", {"num_groups": 3}).make(torch.float32), x, dy))
    torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("shape", [(20, 12, 31, 31), (2, 12, 200, 200)], ids=str)
def test_far_from_zero(shape, kind):
    """At mean 1000 times the standard deviation nothing is lost but the rounding of the mean; a sum of squares would lose 0.1."""
    x = laid_out((torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1000).float(), kind)
    for case in (Case("layer"), Case("group", {"num_groups": 3}), Case("instance")):
        layer = ns.make(case.name, CHANNELS, **case.options, affine=False)
        with ns.backend("cpu"):
            found = layer(x)
        with ns.backend("reference"):
            assert float((found - layer(x.double())).abs().max()) < 6e-5, case


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_set(kind, value):
    x = example((17, 12, 3, 4), torch.float32)
    x[1, 5, 2, 3] = value
    x = laid_out(x, kind)
    found = everything(Case("group", {"num_groups": 4}).make(torch.float32), x, torch.ones_like(x))
    for name in ("y", "dx"):
        bad = ~found[name].isfinite()
        assert bad[1, 3:6].all()
        assert int(bad.sum()) == 36


def test_moments_are_taken_when_somebody_asks():
    x = example((3, 6, 5), torch.float32)
    cells, expected = cpu.cells_later(x), reference.cell_moments(x)
    grouped = cells.pool_groups(2)
    for found, awaited in ((grouped, expected.pool_groups(2)), (cells, expected), (cells.pool(1), expected.pool(1))):
        assert_same(found.mean, awaited.mean)
        assert_same(found.var, awaited.var)
        assert found.count == awaited.count
    assert grouped.share is not None
    assert not hasattr(cells, "nothing of this name")


def test_a_mix_that_looks_at_them_gets_them(ran):
    x = laid_out(example((20, 12, 3, 5), torch.float32), "columns").requires_grad_()

    def mix(cells, batch):
        return cells.mean, 1 / cells.var, 0.0

    results = []
    for name in ("cpu", "reference"):
        with ns.backend(name):
            y = normalize(x, mix, sees="cells").y
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    for a, b in zip(*results, strict=True):
        assert_same(a, b)
    assert not ran


@pytest.mark.parametrize("name", ["layer", "instance"])
def test_after_a_backward_the_graph_keeps_nothing_of_x(name):
    x = laid_out(example((3, 12, 5, 5), torch.float32), "columns")
    inner = x.clone().requires_grad_() * x
    with ns.backend("cpu"):
        y = ns.make(name, 12)(inner)
    kept = weakref.ref(inner)
    del inner
    y.sum().backward()
    assert kept() is None
    assert y.grad_fn is not None
    assert not hasattr(y.grad_fn.step.whole, "y")  # nor of y


def test_x_that_comes_back_in_another_layout():
    x, grads = laid_out(example((20, 12, 8, 8), torch.float32), "columns").requires_grad_(), []
    for hook in (lambda t: t, lambda t: t.contiguous()):
        layer = ns.GroupNorm(12, num_groups=3)
        with ns.backend("cpu"), torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
            y = layer(x)
        grads.append(torch.autograd.grad((y**3).sum(), (x, layer.weight)))
    for one, other in zip(*grads, strict=True):
        assert_same(one, other)


def test_another_default_device_and_a_weight_that_is_elsewhere():
    x = laid_out(example((3, 12, 5, 5), torch.float32), "columns")
    with ns.backend("cpu"):
        expected = ns.LayerNorm(12)(x)
        with torch.device("meta"):
            assert torch.equal(ns.LayerNorm(12, device="cpu")(x), expected)
        with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
            ns.LayerNorm(12, device="meta")(x)


def test_another_backward_of_the_same_graph():
    x = laid_out(example((3, 12, 5, 5), torch.float32), "columns").requires_grad_()
    with ns.backend("cpu"):
        y = ns.LayerNorm(12)(x)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y.square().sum(), x)[0], first)


CHILD = """
import json, os, signal, torch, normsmith as ns
x = torch.randn(20, 12, 40, 40, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)

def numbers():
    with ns.backend("cpu"):
        return ns.LayerNorm(12)(x).detach().flatten()[::97].double().tolist()

expected = numbers()
read, write = os.pipe()
if os.fork() == 0:
    signal.alarm(60)
    torch.set_num_threads(1)  # as a worker of a DataLoader does; more than one would hang in torch itself
    os.write(write, b"y" if numbers() == expected else b"n")
    os._exit(0)
print(json.dumps(os.read(read, 1).decode()))
"""


def test_after_a_fork():
    assert facts_of(CHILD, OMP_NUM_THREADS="2") == "y"

"""Layers whose cells, groups or samples fit on a chip: one read of x, and the same numbers."""

import weakref

import pytest
import torch
from helpers import Case, assert_same, example

import normsmith as ns
from normsmith.kernels import reference
from normsmith.normalize import normalize

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
from normsmith.kernels import cuda
from normsmith.kernels.cuda import geometry, launch, whole

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    Case("layer"),
    Case("group", {"num_groups": 4}),
    Case("group", {"num_groups": 12}),
    Case("instance", {"affine": True}),
    Case("instance", {"track_running_stats": True}),
    Case("rms"),
]


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """So that one has several samples."""
    if DEVICE == "cpu":
        monkeypatch.setattr(geometry, "PROGRAMS", 4)
        monkeypatch.setattr(geometry, "TILE", 64)


@pytest.fixture
def kernels(monkeypatch):
    """The names of those that were launched."""
    names, real = [], launch.launch
    monkeypatch.setattr(launch, "launch", lambda kernel, *rest, **more: (names.append(kernel), real(kernel, *rest, **more)))
    return names


def everything(layer, x, dy, backend):
    """The output, every gradient and every buffer, by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with ns.backend(backend):
        y = layer(x)
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(y, (x, *parameters.values()), dy)
    buffers = {k: v.float() for k, v in layer.named_buffers()}
    return {"y": y, **dict(zip(("dx", *parameters), grads, strict=True)), **buffers}


@pytest.mark.parametrize(
    ("case", "shape", "dtype", "columns"),
    [
        (
            case,
            ((5, 12, 3, 7), (3, 12, 2, 3, 5))[i % 2],
            (torch.float32, torch.bfloat16, torch.float64)[i % 3],
            bool(i // 2 % 2),
        )
        for i, case in enumerate([*CASES, *CASES[1:], CASES[0]])
    ],
    ids=str,
)
def test_one_read_finds_what_two_find(case, shape, dtype, columns, kernels):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    x, dy = (example(shape, dtype, seed=seed).to(DEVICE) for seed in (0, 9))
    if columns:
        x = x.to(memory_format=formats[len(shape)])
    of_weights = torch.float64 if dtype == torch.float64 else torch.float32
    found, expected = (everything(case.make(of_weights).to(DEVICE), x, dy, backend) for backend in ("cuda", "reference"))
    if not (columns and case.options.get("num_groups") == 4):  # whose three channels are less than memory gives at once
        assert whole.chip.standardize in kernels
        assert whole.chip.unstandardize in kernels
        assert whole.reduce.moments not in kernels
    assert found["y"].stride() == x.stride()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert_same(found[name], value, name, tolerance=3e-2 if dtype == torch.bfloat16 else None)


def test_far_from_zero():
    x = (torch.randn(2, 3, 301, dtype=torch.float64) + 1e4).float().to(DEVICE)
    layer = ns.InstanceNorm(3)
    with ns.backend("cuda"):
        found = layer(x)
    with ns.backend("reference"):
        assert float((found - layer(x.double())).abs().max()) < 2e-3, "more than rounding of the mean"


def test_what_is_not_finite_stays_in_its_set():
    x = torch.randn(3, 6, 10).to(DEVICE)
    x[1, 2, 3] = torch.nan
    with ns.backend("cuda"):
        y = ns.GroupNorm(6, num_groups=3).to(DEVICE)(x)
    assert int(y.isnan().sum()) == 20


@pytest.mark.parametrize("change", ["too large", "little of every sector", "neither"])
def test_what_does_not_fit_is_read_twice(change, monkeypatch, kernels):
    x, options = example((2, 12, 4, 5), torch.float32).to(DEVICE), {"num_groups": 1}
    if change == "too large":
        monkeypatch.setattr(whole, "ON_CHIP", 16 * 32 - 1)
    if change == "little of every sector":
        x, options = x.to(memory_format=torch.channels_last), {"num_groups": 4}
    if change == "neither":
        x = example((5, 2, 24), torch.float32).to(DEVICE).permute(1, 2, 0)[:, ::2]
    layer = ns.GroupNorm(12, **options).to(DEVICE)
    with ns.backend("cuda"):
        found = layer(x)
    assert whole.chip.standardize not in kernels
    with ns.backend("reference"):
        assert_same(found, layer(x))


def test_moments_are_taken_when_somebody_asks():
    x = example((3, 6, 5), torch.float32).to(DEVICE)
    cells, expected = cuda.cells_later(x), reference.cell_moments(x)
    grouped = cells.pool_groups(2)
    for found, awaited in ((grouped, expected.pool_groups(2)), (cells, expected), (cells.pool(1), expected.pool(1))):
        assert_same(found.mean, awaited.mean)
        assert_same(found.var, awaited.var)
        assert found.count == awaited.count
    assert grouped.share is not None
    assert not hasattr(cells, "nothing of this name")


def test_a_mix_that_looks_at_them_gets_them(kernels):
    """Then data are standardized as ever."""
    x = example((3, 6, 5), torch.float32).to(DEVICE).requires_grad_()

    def mix(cells, batch):
        return cells.mean, 1 / cells.var, 0.0

    results = []
    for name in ("cuda", "reference"):
        with ns.backend(name):
            y = normalize(x, mix, sees="cells").y
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    for a, b in zip(*results, strict=True):
        assert_same(a, b)
    assert whole.chip.standardize not in kernels


def test_after_a_backward_the_graph_keeps_nothing_of_x():
    x = torch.randn(2, 6, 5).to(DEVICE)
    leaf = torch.randn(2, 6, 5).to(DEVICE).requires_grad_()
    inner = leaf * x
    with ns.backend("cuda"):
        y = ns.LayerNorm(6).to(DEVICE)(inner)
    kept = weakref.ref(inner)
    del inner
    y.sum().backward()
    assert kept() is None
    assert y.grad_fn is not None


def test_another_backward_of_the_same_graph():
    x = torch.randn(2, 6, 5).to(DEVICE).requires_grad_()
    with ns.backend("cuda"):
        y = ns.LayerNorm(6).to(DEVICE)(x)
    first = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    assert_same(torch.autograd.grad(y.square().sum(), x)[0], first)

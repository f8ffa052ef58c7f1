"""The Triton kernels: on a GPU where there is one, else on the CPU through Triton's interpreter, where every program takes milliseconds."""

import math
from typing import get_args

import pytest
import torch
from helpers import assert_same
from tiles import DEVICE, LAYOUTS, laid_out, pairs, random, use_small_tiles
from torch import Tensor

from normsmith.kernels import Bend, Bent, Kind, reference

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
from normsmith.kernels import cuda
from normsmith.kernels.cuda import geometry, launch

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy, in the interpreter, for a NaN
NAMES = ("moments", "affine", "affine floor", "sums", "sums floor", "input", "input floor")
# (N, C, S): a single number, channel, position, sample; odd sizes; more channels than a tile; many samples; a long cell.
SIZES = [(1, 1, 1), (3, 1, 70), (5, 7, 1), (1, 5, 33), (3, 5, 49), (2, 70, 3), (67, 3, 2), (2, 3, 301)]
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BOUNDS = ("none", "of cells", "shared", "infinite", "empty")
STATISTICS = ("of cells", "shared", "mixed", "of samples")


@pytest.fixture(autouse=True)
def _small_tiles(request, monkeypatch):
    if "as_it_is" not in request.fixturenames:
        use_small_tiles(monkeypatch)


@pytest.fixture
def as_it_is():
    """Tiles of the size they have on a GPU."""


def bounds(x: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    """The lower one is an element of x, so that strictness counts."""
    low = x[:, :, x.shape[2] // 3].to(reference.statistics_type(x))
    return {
        "none": None,
        "of cells": (low, low + 1.5),
        "shared": (low[:1], low[:1] + 1.5),
        "infinite": (torch.full_like(low, -math.inf), torch.full_like(low, math.inf)),
        "empty": (low, torch.cat([low[:, :1], low[:, 1:] + 1.5], 1)),
    }[kind]


def statistics(x: Tensor, kind: str) -> list[Tensor]:
    """Four of them: of every cell, shared by samples or channels, or some the one and some the other."""
    samples, channels, _ = x.shape
    dtype = reference.statistics_type(x)
    outer = 1 if kind == "shared" else samples
    inner = 1 if kind == "of samples" else channels
    found = [random(outer, inner, seed=seed, dtype=dtype) for seed in range(1, 5)]
    return [t[:1].expand(samples, -1) if kind == "mixed" and i % 2 else t for i, t in enumerate(found)]


def run(backend, name, x, dy, limits, kind, shared):
    """One operation with made-up statistics: a list of tensors."""
    within = bounds(x, limits)
    first, second, third, fourth = statistics(x, kind)
    if name == "moments":
        found = backend.cell_moments(x, within, shared=shared)
        return [found.mean, found.var, torch.as_tensor(found.count, device=x.device).to(found.mean).expand_as(found.mean)]
    name, _, activation = name.partition(" ")
    bend = Bend(activation, fourth * (activation != "relu")) if activation else None
    bent = None if bend is None else Bent(first, second, third, bend)
    if name == "affine":
        return [backend.cell_affine(x, first, second, third, bend)]
    if name == "sums":
        sums = backend.cell_grad_sums(dy, x, first, within if bent is None else None, shared=shared, bent=bent)
        return [t for t in sums if t is not None]
    return [backend.cell_grad_input(dy, x, second, fourth, third, first, within, bent)]


@pytest.mark.parametrize(
    ("size", "name", "layout", "dtype", "limits"), pairs(SIZES, NAMES, tuple(LAYOUTS), TYPES, BOUNDS), ids=str
)
def test_every_operation_equals_the_reference(size, name, layout, dtype, limits):
    x, dy = (laid_out(random(*size, seed=seed, dtype=dtype), layout) for seed in (0, 9))
    which = sum(size) + len(layout) + len(limits)
    kind, shared = STATISTICS[which % 4], which // 4 % 2 == 0
    found = run(cuda, name, x, dy, limits, kind, shared)
    expected = run(reference, name, x, dy, limits, kind, shared)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_same(a, b, f"result {i}, statistics {kind}, shared {shared}")
        if a.shape == x.shape and layout in {"rows", "columns"}:
            assert a.stride() == x.stride()


@pytest.mark.parametrize(
    ("name", "activation", "layout", "dtype"),
    pairs(("affine", "sums", "input"), get_args(Kind), ("rows", "columns"), TYPES),
    ids=str,
)
def test_every_activation_equals_the_reference(name, activation, layout, dtype):
    x, dy = (laid_out(random(3, 5, 49, seed=seed, dtype=dtype) * 3, layout) for seed in (0, 9))
    if name == "affine":
        x[1, 2, 7] = math.nan
    shared = len(activation) % 2 == 0
    found, expected = (run(backend, f"{name} {activation}", x, dy, "none", "mixed", shared) for backend in (cuda, reference))
    for a, b in zip(found, expected, strict=True):
        assert_same(a, b, activation)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("size", [(2, 3, 2500), (3, 70, 40)], ids=str)
@pytest.mark.usefixtures("as_it_is")
def test_tiles_of_the_real_size(size, layout, shared):
    x, dy = (laid_out(random(*size, seed=seed, dtype=torch.float32), layout) for seed in (0, 9))
    for name in ("moments", "sums", "input"):
        found, expected = (run(backend, name, x, dy, "none", "of cells", shared) for backend in (cuda, reference))
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b, name)


@pytest.mark.parametrize("kind", ["a number", "a number per cell", "a number per position", "the other layout", "negative"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_gradient_laid_out_otherwise(layout, kind):
    n, c, s = size = (3, 5, 40)
    x = laid_out(random(*size, dtype=torch.float32), layout)
    shapes = {"a number": (1, 1, 1), "a number per cell": (n, c, 1), "a number per position": (1, 1, s)}
    dy = random(*shapes.get(kind, size), seed=9, dtype=torch.float32)
    if kind == "the other layout":
        dy = laid_out(dy, "rows" if layout == "columns" else "columns")
    if kind == "negative":
        dy = torch.complex(dy, dy).conj().imag
        assert dy.is_neg()
    for name in ("sums", "input"):
        for shared in (False, True):
            found = run(cuda, name, x, dy.expand(size), "none", "shared" if shared else "of cells", shared)
            expected = run(reference, name, x, dy.expand(size).clone(), "none", "shared" if shared else "of cells", shared)
            for a, b in zip(found, expected, strict=True):
                assert_same(a, b, name)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("shared", [False, True])
def test_far_from_zero(layout, shared):
    """Mean 1e4 times the standard deviation, in float32: what a sum of squares would lose altogether."""
    x = laid_out((random(3, 5, 301) + 1e4).float(), layout)
    found, expected = cuda.cell_moments(x, shared=shared), reference.cell_moments(x.double(), shared=shared)
    assert ((found.mean - expected.mean).abs() < 6e-4).all(), "more than the rounding of the mean itself"
    assert ((found.var / expected.var - 1).abs() < 2e-5).all()


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_guess_at_the_mean_is_of_elements_that_count(layout):
    """None of the first tiles has any, and their values are far off."""
    x = random(2, 3, 301, dtype=torch.float32) + 1e3
    x[:, :, :150] = 1e7
    x, high = laid_out(x, layout), torch.full((1, 3), 1e6, device=DEVICE)
    found, expected = cuda.cell_moments(x, (-high, high)), reference.cell_moments(x.double(), (-high.double(), high.double()))
    assert_same(found.mean, expected.mean)
    assert ((found.var / expected.var - 1).abs() < 2e-5).all()


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_cell(layout, value):
    x = random(3, 5, 101, dtype=torch.float32)
    x[2, 3, 50] = value
    x = laid_out(x, layout)
    found, expected = (backend.cell_moments(x) for backend in (cuda, reference))
    for a, b in ((found.mean, expected.mean), (found.var, expected.var)):
        torch.testing.assert_close(a, b, equal_nan=True)
    one = torch.ones(1, 5, device=DEVICE)
    for level in (-10 * one, one * math.nan):
        floored, awaited = (backend.cell_affine(x, one, one, one, Bend("floor", level)) for backend in (cuda, reference))
        torch.testing.assert_close(floored, awaited, equal_nan=True)


def test_a_constant_channel_has_no_variance():
    x = torch.full((3, 5, 101), 3.0, device=DEVICE)
    found = cuda.cell_moments(x, shared=True)
    assert_same(found.mean, torch.full((1, 5), 3.0, device=DEVICE))
    assert float(found.var.max()) < 1e-12


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("name", ["moments", "sums floor"])
def test_results_repeat_to_the_bit(name, layout):
    x, dy = (laid_out(random(5, 3, 101, seed=seed, dtype=torch.float32), layout) for seed in (0, 9))
    first, second = (run(cuda, name, x, dy, "none", "of cells", True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("as_it_is")
def test_how_many_kernels_are_launched(monkeypatch):
    launched = []
    real = launch.launch
    monkeypatch.setattr(launch, "launch", lambda kernel, *rest, **more: (launched.append(1), real(kernel, *rest, **more)))
    for size, partial in (((8, 3, 10), 1), ((9, 3, 2049), 2)):
        x = random(*size, dtype=torch.float32)
        for name, most in (("moments", partial), ("affine", 1), ("sums", partial), ("input", 1)):
            launched.clear()
            run(cuda, name, x, x, "none", "mixed", True)
            assert len(launched) == most, name


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((32, 64, 3136), True),
        ((256, 2048, 49), True),
        ((1, 3, 10**7), True),
        ((16384, 4096, 1), False),
        ((2, 32, 128**3), False),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.usefixtures("as_it_is")
def test_the_work_is_shared_out(shape, rows, shared):
    """Enough programs for every shape, none with too much to add up, and every tile to exactly one."""
    n, c, s = shape
    x = torch.empty(shape if rows else (n, s, c), device="meta")
    x = x if rows else x.transpose(1, 2)
    (view,) = geometry.fold_samples(x) if shared else geometry.fold_cells(x)
    tiles = geometry.Tiles.of(view)
    splits = geometry.Splits.of(tiles, shared)
    assert tiles.height * tiles.width == geometry.TILE or tiles.blocks * tiles.along == 1
    programs = splits.outer * tiles.blocks * splits.number
    assert programs >= min(geometry.PROGRAMS // 2, splits.outer * tiles.blocks * splits.run // geometry.SHORT)
    assert splits.span <= geometry.LONGEST
    assert (splits.number - 1) * splits.span < splits.run <= splits.number * splits.span

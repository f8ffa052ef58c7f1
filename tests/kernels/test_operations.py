"""The four operations: the loops against the reference, the reference against autograd, in every layout and shape of statistics."""

import math
from itertools import product

import pytest
import torch
from helpers import assert_same
from isolated import run_python
from pairwise import pairwise
from torch import Tensor

from normsmith.kernels import Bend, Bent, cpu, reference

NAMES = (
    "cell_moments",
    "cell_affine",
    "cell_affine floored",
    "cell_grad_sums",
    "cell_grad_sums floored",
    "cell_grad_input",
    "cell_grad_input floored",
)
LARGE = (7, 12, 1009)  # enough for several cores
# (N, C, S): a single channel, position, sample, number; one more than a block; many channels; a prime number of tokens.
SIZES = [(2, 1, 300), (3, 7, 1), (1, 5, 33), (1, 1, 1), (2, 3, 4097), (2, 5000, 3), (257, 6, 1), LARGE]
LAYOUTS = {
    "rows": lambda empty, n, c, s: empty(n, c, s),
    "columns": lambda empty, n, c, s: empty(n, s, c).transpose(1, 2),
    "sliced rows": lambda empty, n, c, s: empty(n + 2, c + 3, s + 1)[2:, 1 : c + 1, 1:],
    "sliced columns": lambda empty, n, c, s: empty(n + 2, s + 1, c + 3).transpose(1, 2)[2:, 1 : c + 1, 1:],
    "neither": lambda empty, n, c, s: empty(s, n, 2 * c).permute(1, 2, 0)[:, ::2],
}
TYPES = (torch.float32, torch.float64)
BOUNDS = ("none", "of cells", "shared", "infinite", "empty")

every_name = pytest.mark.parametrize("name", NAMES)
every_layout = pytest.mark.parametrize("kind", LAYOUTS)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(values: Tensor, kind: str) -> Tensor:
    """The same values with the strides of that kind."""
    return LAYOUTS[kind](lambda *shape: torch.full(shape, math.nan, dtype=values.dtype), *values.shape).copy_(values)


def bounds(x: Tensor, kind: str) -> tuple[Tensor, Tensor] | None:
    """The lower one is an element of x, so that strictness counts."""
    low = x[:, :, x.shape[2] // 3].contiguous()
    return {
        "none": None,
        "of cells": (low, low + 1.5),
        "shared": (low[:1], low[:1] + 1.5),
        "infinite": (torch.full_like(low, -math.inf), torch.full_like(low, math.inf)),
        "empty": (low, torch.cat([low[:, :1], low[:, 1:] + 1.5], 1)),
    }[kind]


def run(backend, name, x, dy, within=None, *, outer=None, shared=False):
    """One operation with made-up statistics of shape (outer, C): a list of tensors."""
    n, c, _ = x.shape
    first, second, third, fourth = (random(outer or n, c, seed=seed, dtype=torch.float32).to(x.dtype) for seed in range(1, 5))
    if name == "cell_moments":
        moments = backend.cell_moments(x, within, shared=shared)
        return [moments.mean, moments.var, torch.as_tensor(moments.count, dtype=x.dtype).expand_as(moments.mean)]
    bend = Bend("floor", fourth) if name.endswith("floored") else None
    bent = None if bend is None else Bent(first, second, third, bend)
    if name.startswith("cell_affine"):
        return [backend.cell_affine(x, first, second, third, bend)]
    if name.startswith("cell_grad_sums"):
        sums = backend.cell_grad_sums(dy, x, first, within if bent is None else None, shared=shared, bent=bent)
        return [value for value in sums if value is not None]
    return [backend.cell_grad_input(dy, x, second, fourth, third, first, within, bent)]


def exact(name, x, dy, within=None, **options):
    """The same by the reference in float64."""
    wide = within and tuple(bound.double() for bound in within)
    return run(reference, name, x.double(), dy.double(), wide, **options)


def assert_all_same(found, expected, what=""):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_same(a, b, f"result {i} {what}")


def settings(name, samples):
    """What may make a difference to an operation: the shape of the statistics it is given, or of those it returns, and bounds."""
    outers = [samples] if name == "cell_moments" else [1, samples]
    shared = [False, True] if name.startswith(("cell_moments", "cell_grad_sums")) else [False]
    limits = ["none"] if name.startswith("cell_affine") or name == "cell_grad_sums floored" else BOUNDS
    return product(outers, shared, limits)


# Each operation with every size in every layout, in one of the types, which take turns.
CASES = [(name, size, kind, dtype) for name in NAMES for size, kind, dtype in pairwise(SIZES, LAYOUTS, TYPES)]


@pytest.mark.parametrize(("name", "size", "kind", "dtype"), CASES, ids=str)
def test_cpu_equals_the_reference(name, size, kind, dtype):
    x = laid_out(random(*size, dtype=dtype), kind)
    dy = laid_out(random(*size, seed=9, dtype=dtype), kind)
    for outer, shared, limits in settings(name, size[0]):
        options = {"outer": outer, "shared": shared}
        found = run(cpu, name, x, dy, bounds(x, limits), **options)
        assert_all_same(found, exact(name, x, dy, bounds(x, limits), **options), f"{options}, bounds {limits}")
        assert all(t.dtype == dtype for t in found if t.is_floating_point())


@every_name
@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_infinite_bounds_are_none(name, backend, kind):
    x, dy = (laid_out(random(*LARGE, seed=seed), kind) for seed in (0, 9))
    assert_all_same(run(backend, name, x, dy, bounds(x, "infinite")), run(backend, name, x, dy))


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_counts_are_plain_numbers_without_bounds(backend, kind):
    x = laid_out(random(4, 3, 5), kind)
    assert backend.cell_moments(x).count == 5
    assert backend.cell_moments(x, shared=True).count == 20
    assert torch.equal(backend.cell_moments(x, bounds(x, "infinite")).count, torch.full((4, 3), 5.0).double())
    assert torch.equal(backend.cell_moments(x, bounds(x, "infinite"), shared=True).count, torch.full((1, 3), 20.0).double())


@pytest.mark.parametrize("name", ["cell_grad_sums", "cell_grad_input"])
@every_layout
@pytest.mark.parametrize("dy_kind", [*LAYOUTS, "a number", "a number per cell", "a number per position"])
def test_a_gradient_laid_out_otherwise(name, kind, dy_kind):
    n, c, s = size = (3, 5, 40)
    x = laid_out(random(*size), kind)
    expanded = {"a number": (1, 1, 1), "a number per cell": (n, c, 1), "a number per position": (1, 1, s)}
    dy = random(*expanded[dy_kind]).expand(size) if dy_kind in expanded else laid_out(random(*size, seed=9), dy_kind)
    for outer, shared in ((n, False), (n, True), (1, True)):
        options = {"outer": outer, "shared": shared}
        assert_all_same(run(cpu, name, x, dy, **options), exact(name, x, dy.clone(), **options))


@every_name
@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_an_input_expanded_over(dims, kind, name):
    size = (3, 5, 40)
    x = laid_out(random(*(1 if d in dims else length for d, length in enumerate(size))), kind).expand(size)
    dy = random(*size, seed=9)
    assert_all_same(run(cpu, name, x, dy), exact(name, x.clone(), dy))


@every_name
@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_the_memory_format_is_kept(name, backend, kind):
    x, dy = (laid_out(random(3, 5, 7, seed=seed), kind) for seed in (0, 9))
    for result in run(backend, name, x, dy):
        if result.shape == x.shape:
            assert result.stride() == x.stride()


@every_name
@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_inputs_are_left_alone(name, kind):
    x, dy = (laid_out(random(*LARGE, seed=seed), kind) for seed in (0, 9))
    before = x.clone(), dy.clone()
    run(cpu, name, x, dy)
    assert torch.equal(x, before[0])
    assert torch.equal(dy, before[1])


@every_layout
@pytest.mark.parametrize("shared", [False, True])
def test_far_from_zero(kind, shared):
    """Mean 1e4 times the standard deviation, in float32: what a sum of squares would lose altogether."""
    x = laid_out((random(*LARGE) + 1e4).float(), kind)
    dy = laid_out(random(*LARGE, seed=9).float(), kind)
    found, expected = (cpu.cell_moments(x, shared=shared), reference.cell_moments(x.double(), shared=shared))
    assert ((found.mean - expected.mean).abs() < 6e-4).all(), "more than the rounding of the mean itself"
    assert ((found.var / expected.var - 1).abs() < 2e-5).all()
    # Factors that are no powers of two: products of those are exact, and hide a cancellation.
    center, scale, slope, bias = (found.mean, *(torch.full_like(found.mean, v) for v in (0.7, 0.3, 0.1)))
    wide = [t.double() for t in (center, scale, slope, bias)]
    y, dx = cpu.cell_affine(x, center, scale, bias), cpu.cell_grad_input(dy, x, scale, slope, center, bias)
    assert_same(y, reference.cell_affine(x.double(), wide[0], wide[1], wide[3]), tolerance=1e-6)
    assert_same(dx, reference.cell_grad_input(dy.double(), x.double(), wide[1], wide[2], wide[0], wide[3]), tolerance=1e-6)
    sums = cpu.cell_grad_sums(dy, x, center, shared=shared)[:2]
    assert_all_same(sums, reference.cell_grad_sums(dy.double(), x.double(), wide[0], shared=shared)[:2])


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_outliers_beyond_wide_bounds_cost_no_precision(kind):
    """Any position may hold one: none may serve as the origin of the sums."""
    x = random(*LARGE, dtype=torch.float32)
    x[:, :, :: LARGE[2] // 8] = 1e7
    x = laid_out(x, kind)
    high = torch.full((1, LARGE[1]), 1e6)
    found, expected = cpu.cell_moments(x, (-high, high)), reference.cell_moments(x.double(), (-high.double(), high.double()))
    assert_same(found.mean, expected.mean)
    assert_same(found.var, expected.var)


@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("value", [1e3, 1e6])
def test_outliers_cost_little_precision(kind, value):
    """However they are placed: a block's sums may start from them, and then lose some 4096 / 4 roundings."""
    x = random(*LARGE, dtype=torch.float32)
    x[:, :, :: LARGE[2] // 4] = value
    found, expected = cpu.cell_moments(laid_out(x, kind)), reference.cell_moments(x.double())
    assert ((found.var / expected.var - 1).abs() < 3e-4).all()


@pytest.mark.parametrize("kind", ["rows", "columns"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_cell(kind, value):
    x = random(*LARGE)
    x[2, 3, 500] = value
    x = laid_out(x, kind)
    found, expected = cpu.cell_moments(x), reference.cell_moments(x)
    bad = torch.zeros(LARGE[:2], dtype=torch.bool)
    bad[2, 3] = True
    assert torch.equal(found.mean.isfinite(), ~bad)
    assert torch.equal(found.var.isnan(), bad)
    assert_same(found.mean[~bad], expected.mean[~bad])
    y = cpu.cell_affine(x, *(torch.ones(1, LARGE[1]).double(),) * 3)
    assert torch.equal(y.isfinite(), x.isfinite())


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_bounds_keep_out_what_is_not_finite(kind):
    values = random(*LARGE)
    for i, bad in enumerate((math.nan, math.inf, -math.inf)):
        values[i, 0, 0] = values[i, 1, 500] = bad
    x = laid_out(values, kind)
    for limit in (10.0, math.inf):
        high = torch.full((1, LARGE[1]), limit).double()
        for shared in (False, True):
            found, expected = (b.cell_moments(x, (-high, high), shared=shared) for b in (cpu, reference))
            assert found.mean.isfinite().all()
            assert_all_same([found.mean, found.var, found.count], [expected.mean, expected.var, expected.count])


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@every_name
@every_layout
def test_the_number_of_threads_changes_no_bit(name, kind, set_threads):
    x, dy = (laid_out(random(*LARGE, seed=seed, dtype=torch.float32), kind) for seed in (0, 9))
    for shared in (False, True):
        for limits in ("none", "of cells"):
            results = []
            for threads in (1, 2, 2, 1):
                set_threads(threads)
                results.append(run(cpu, name, x, dy, bounds(x, limits), shared=shared))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True)), f"{shared=} {limits=}"


@pytest.mark.parametrize("outer", [1, 3])
@pytest.mark.parametrize("limits", ["none", "of cells", "shared"])
def test_the_reference_is_differentiable(outer, limits):
    x, scale, bias = random(3, 2, 4).requires_grad_(), random(outer, 2).requires_grad_(), random(outer, 2).requires_grad_()
    within = bounds(x.detach() - 1e-2, limits)  # no element on a bound, where the count would jump

    def forward(x, scale, bias):
        # A cell without elements within its bounds has variance zero, where a root would have no derivative.
        moments = reference.cell_moments(x, within, shared=outer == 1)
        return reference.cell_affine(x, moments.mean, scale * (moments.var + 0.1).rsqrt(), bias)

    assert torch.autograd.gradcheck(forward, (x, scale, bias))
    assert torch.autograd.gradgradcheck(forward, (x, scale, bias))


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("shared", [False, True])
def test_sums_are_the_derivatives_of_affine(backend, shared):
    x, dy = random(4, 3, 6), random(4, 3, 6, seed=9)
    center, scale, bias = (random(1 if shared else 4, 3, seed=seed).requires_grad_() for seed in (1, 2, 3))
    y = reference.cell_affine(x, center, scale, bias)
    d_scale, d_bias = torch.autograd.grad(y, (scale, bias), dy)
    total, product, below = backend.cell_grad_sums(dy, x, center.detach(), shared=shared)
    assert_same(total, d_bias)
    assert_same(product, d_scale)
    assert below is None


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("limits", BOUNDS)
def test_bounds_leave_the_gradient_of_the_output_whole(backend, limits):
    """dy * scale reaches every element; only what comes through the moments is bounded."""
    x, dy = random(4, 3, 6), random(4, 3, 6, seed=9)
    scale, slope, pivot, offset = (random(4, 3, seed=seed) for seed in range(4))
    within = bounds(x, limits)
    low, high = (torch.tensor(-math.inf), torch.tensor(math.inf)) if within is None else (b.unsqueeze(2) for b in within)
    bracket = ((x - pivot.unsqueeze(2)) * slope.unsqueeze(2) + offset.unsqueeze(2)) * ((low < x) & (x < high))
    expected = dy * scale.unsqueeze(2) + bracket
    assert_same(backend.cell_grad_input(dy, x, scale, slope, pivot, offset, within), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_takes_half_precision_and_computes_in_float32(dtype):
    x = random(4, 3, 50).to(dtype)
    moments = reference.cell_moments(x)
    assert moments.mean.dtype == moments.var.dtype == torch.float32
    assert_same(moments.var, reference.cell_moments(x.double()).var)
    assert reference.cell_affine(x, *(torch.ones(1, 3),) * 3).dtype == dtype


def test_nothing_depends_on_the_default_device():
    # A process of its own: results allocated where there is no memory would end this one.
    done = run_python("""
        import torch
        from normsmith.kernels import cpu
        x, one = torch.randn(4, 8, 50), torch.ones(1, 8)
        with torch.device("meta"):
            cpu.cell_moments(x)
            cpu.cell_grad_sums(x, x, one)
            cpu.cell_affine(x, one, one, one)
            cpu.cell_grad_input(x, x, one, one, one, one)
        """)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"

"""The Triton kernels for statistics alone against the same in torch operations."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_same
from torch import Tensor

from normsmith import arithmetic
from normsmith.kernels import reference

pytest.importorskip("triton", reason="Triton is not installed: pip install 'normsmith[cuda]'")
from normsmith.kernels import cuda
from normsmith.kernels.cuda import launch, small

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, C = 5, 42  # not the multiple of anything


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that even a few numbers are more than a program holds at once."""
    if DEVICE == "cpu":
        monkeypatch.setattr(small, "BLOCK", 16)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def moments(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(mean=random(*shape, seed=seed, dtype=dtype), var=random(*shape, seed=seed + 1, dtype=dtype).square())


def agree(monkeypatch, operation, *arguments, kernels=1, **options):
    """As in plain torch, in so many kernels."""
    launched, real = [], launch.launch
    monkeypatch.setattr(launch, "launch", lambda *given, **more: (launched.append(given[0]), real(*given, **more)))
    found = flat(getattr(cuda, operation)(*arguments, **options))
    expected = flat(getattr(arithmetic, operation)(*arguments, **options))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_same(a, b, f"result {i}")
    assert len(launched) == kernels


def flat(value):
    """The tensors of a nest of tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [t for one in value for t in flat(one)]


@pytest.mark.parametrize(
    ("shape", "dim", "spread"), [((N, C), 0, False), ((N, C), 1, False), ((N, 3, 14), 2, True), ((3, N, C), -2, True)], ids=str
)
def test_pooling_and_sharing(shape, dim, spread, monkeypatch):
    far = random(*shape) + 100
    agree(monkeypatch, "pool", far, random(*shape, seed=1).square(), dim, spread=spread)
    if spread:
        agree(monkeypatch, "share", far, random(*shape, seed=1), dim)


def test_what_is_not_a_number_stays_in_its_set():
    mean, var = random(N, C), random(N, C, seed=1).square()
    mean[2, 3] = torch.nan
    found = cuda.pool(mean, var, 1)
    assert [int(t.isnan().sum()) for t in found] == [1, 1]


KINDS = [(N, C), (1, C), (N, 1)]


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(
    ("shape", "weight"), list(zip(KINDS * 2, [(C,), (C,), (C,), None, (N, C), (N, C)], strict=True)), ids=str
)
def test_standardizing_and_its_derivative(shape, weight, centered, monkeypatch):
    seen, weight = moments(*shape), None if weight is None else random(*weight, seed=5)
    bias = None if weight is None or not centered else random(*weight.shape, seed=6)
    agree(monkeypatch, "standardize", seen, weight, 1e-3, centered=centered)
    inverse, scale = arithmetic.standardize(seen, weight, 1e-3, centered=centered)
    sums = random(*scale.shape, seed=7), random(*scale.shape, seed=8)
    agree(monkeypatch, "unstandardize", *sums, (inverse, scale), seen, weight, bias, centered=centered)


def test_weights_of_half_precision(monkeypatch):
    seen, weight = moments(N, C), random(C, dtype=torch.bfloat16)
    agree(monkeypatch, "standardize", seen, weight, 1e-3, centered=True)
    factors = arithmetic.standardize(seen, weight, 1e-3, centered=True)
    agree(
        monkeypatch,
        "unstandardize",
        random(N, C),
        random(N, C, seed=1),
        factors,
        seen,
        weight,
        weight,
        centered=True,
    )


@pytest.mark.parametrize("which", [(0, 2, 1), (2, 1), (1,)], ids=str)
def test_blending_and_its_derivative(which, monkeypatch):
    sources = [moments(*KINDS[i], seed=10 * i) for i in which]
    p, q = random(len(which), seed=1), random(len(which), seed=2)
    agree(monkeypatch, "weighted_sum", sources, p, q)
    mean, var = arithmetic.weighted_sum(sources, p, q)
    agree(monkeypatch, "weigh", random(*mean.shape, seed=3), random(*var.shape, seed=4), sources, p, q, kernels=1 + len(which))


@pytest.mark.parametrize("which", [(0, 2, 1), (2, 1), (1,)], ids=str)
def test_lines_are_added_up(which, monkeypatch):
    shapes = [KINDS[i] for i in which]
    pulled = [(random(*s, seed=i), random(*s, seed=9 + i), random(*s, seed=99 + i), 7 + i) for i, s in enumerate(shapes)]
    agree(monkeypatch, "lines", pulled)


def test_what_the_kernels_do_not_take_is_done_all_the_same(monkeypatch):
    precise, strided = moments(N, C, dtype=torch.float64), SimpleNamespace(mean=random(C, N).t(), var=random(C, N).t().square())
    weights = random(4), random(4, seed=1)
    agree(monkeypatch, "pool", precise.mean, precise.var, 1, kernels=0)
    agree(monkeypatch, "pool", strided.mean, strided.var, (0, 1), kernels=0)
    agree(monkeypatch, "share", precise.mean, precise.var, 1, kernels=0)
    agree(monkeypatch, "standardize", precise, None, 1e-3, centered=True, kernels=0)
    agree(monkeypatch, "weighted_sum", [moments(N, C)] * 4, *weights, kernels=0)
    agree(monkeypatch, "weigh", random(N, C), random(N, C), [strided], *(w[:1] for w in weights), kernels=0)
    count = torch.full((N, C), 3.0, device=DEVICE)
    agree(monkeypatch, "lines", [(random(N, C), random(N, C), random(N, C), count)], kernels=0)
    factors = random(N, C), random(N, C)
    agree(monkeypatch, "unstandardize", *factors, factors, moments(N, C), random(N, 1), random(C), centered=True, kernels=0)


def test_a_gradient_is_not_lost():
    """What requires one goes through operations that autograd sees."""
    seen, weight = moments(N, C), random(C).requires_grad_()
    assert cuda.standardize(seen, weight, 1e-3, centered=True)[1].requires_grad
    seen.mean.requires_grad_()
    assert cuda.pool(seen.mean, seen.var, 0)[0].requires_grad
    with torch.no_grad():
        assert not cuda.pool(seen.mean, seen.var, 0)[0].requires_grad


@pytest.mark.parametrize("step", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_running_average_moves_as_in_the_reference(dtype, step):
    size, moved = 300, []
    values = (random(1, size, dtype=dtype), random(1, size, seed=1, dtype=dtype))
    for backend in (cuda, reference):
        averages = (random(size, seed=2, dtype=dtype), random(size, seed=3, dtype=dtype))
        versions = [t._version for t in averages]
        backend.move_average(averages, values, (1.0, 1.25), step)
        assert all(t._version > before for t, before in zip(averages, versions, strict=True)), "autograd would not notice"
        moved.append(averages)
    for a, b in zip(*moved, strict=True):
        assert_same(a, b, tolerance=1e-6 if dtype == torch.float32 else 1e-12)

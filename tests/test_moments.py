"""The algebra of moments against moments of data: whatever is pooled or merged must be what the union itself gives."""

import math

import pytest
import torch
from helpers import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normsmith.combined import blend
from normsmith.moments import Moments

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 6)
lengths_of_cells = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def data(*shape: int, seed: int = 0) -> Tensor:
    """Cells of unlike mean and spread, so that no wrong weight goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, (*shape[:-1], 1), (*shape[:-1], 1)))
    values, spread, middle = draw
    return values * spread.exp() + 5 * middle


def ragged(lengths: list[int], seed: int) -> list[Tensor]:
    return [data(3, length, seed=seed + i) for i, length in enumerate(lengths)]


def moments_of(cells: list[Tensor]) -> Moments:
    """One cell of data after the other along dimension 0; a cell without data holds NaN."""
    every = [Moments.of(cell, 1) for cell in cells]
    counts = torch.tensor([float(m.count) for m in every], dtype=torch.float64).view(-1, 1, 1).expand(-1, 3, 1)
    return Moments(torch.stack([m.mean for m in every]), torch.stack([m.var for m in every]), counts)


def count_of(moments: Moments) -> Tensor:
    return torch.as_tensor(moments.count, dtype=moments.mean.dtype).expand_as(moments.mean)


def assert_same_moments(actual: Moments, expected: Moments) -> None:
    assert_same(actual.mean, expected.mean, "mean")
    assert_same(actual.var, expected.var, "variance")
    assert_same(count_of(actual), count_of(expected), "count")


def union(cells: list[Tensor]) -> Moments:
    """The moments of all data together; zeros where there are none."""
    whole = torch.cat(cells, 1)
    return Moments.of(whole, 1) if whole.shape[1] else Moments(torch.zeros(3, 1).double(), torch.zeros(3, 1).double(), 0)


@pytest.mark.parametrize("dims", [0, 1, 2, -1, (0, 2), (1, 2), (0, 1, 2)])
def test_of_is_mean_biased_variance_and_count(dims):
    x = data(3, 4, 5)
    found = Moments.of(x, dims)
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    assert_same_moments(found, Moments(mean, var, x.numel() // mean.numel()))


@quick
@given(lengths_of_cells, lengths_of_cells, seeds)
def test_merge_is_commutative(first, second, seed):
    a, b = (moments_of(ragged(lengths, seed + i)).pool(0) for i, lengths in enumerate((first, second)))
    assert_same_moments(a.merge(b), b.merge(a))


@quick
@given(lengths_of_cells, lengths_of_cells, lengths_of_cells, seeds)
def test_merge_is_associative(first, second, third, seed):
    a, b, c = (moments_of(ragged(lengths, seed + i)).pool(0) for i, lengths in enumerate((first, second, third)))
    assert_same_moments(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same_moments(a.merge(b, c), a.merge(b.merge(c)))


@quick
@given(st.integers(1, 9), st.integers(1, 9), seeds)
def test_merge_of_plain_counts_is_the_union(first, second, seed):
    cells = ragged([first, second], seed)
    a, b = (Moments.of(cell, 1) for cell in cells)
    assert isinstance(a.count, int)
    assert_same_moments(a.merge(b), union(cells))


@quick
@given(sizes, sizes, sizes, seeds)
def test_pool_of_equal_counts_is_the_union(n, c, s, seed):
    x = data(n, c, s, seed=seed)
    cells = Moments.of(x, 2)
    for dims in (0, 1, (0, 1)):
        together = (dims, 2) if isinstance(dims, int) else (*dims, 2)
        assert_same_moments(cells.pool(dims), Moments.of(x, together))


@quick
@given(lengths_of_cells, seeds)
def test_pool_of_unequal_counts_is_the_union(lengths, seed):
    cells = ragged(lengths, seed)
    assert_same_moments(moments_of(cells).pool(0).map(lambda t: t.squeeze(0)), union(cells))


@quick
@given(sizes, sizes, sizes, seeds)
def test_equal_counts_as_a_tensor_change_nothing(n, c, s, seed):
    cells = Moments.of(data(n, c, s, seed=seed), 2)
    as_tensor = Moments(cells.mean, cells.var, torch.full((n, c, 1), float(s), dtype=torch.float64))
    for dims in (0, (0, 1)):
        assert_same_moments(as_tensor.pool(dims), cells.pool(dims))


@pytest.mark.parametrize("content", [0.0, 7.0, math.inf, math.nan])
def test_a_cell_that_counts_nothing_is_neutral(content):
    cell = Moments.of(data(3, 8), 1)
    nothing = Moments(torch.full_like(cell.mean, content), torch.full_like(cell.var, content), 0)
    assert_same_moments(cell.merge(nothing), cell)
    assert_same_moments(nothing.merge(cell), cell)


def test_nothing_at_all_is_zero():
    nan = torch.full((4, 3), math.nan)
    pooled = Moments(nan, nan, torch.zeros(4, 3)).pool(0)
    for value in (pooled.mean, pooled.var, pooled.count):
        assert torch.equal(value, torch.zeros(1, 3))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_large_mean_does_not_cancel(pooled):
    x = (torch.randn(16, 4, 500, dtype=torch.float64) + 1e4).float()
    found = Moments.of(x, 2).pool(0) if pooled else Moments.of(x, (0, 2))
    exact = Moments.of(x.double(), (0, 2))
    assert ((found.mean - exact.mean).abs() < 4e-3).all()
    assert ((found.var / exact.var - 1).abs() < 1e-4).all(), "E[x²] - E[x]² would be off by more than 1 here"


def test_merge_of_large_means_does_not_cancel():
    x = (torch.randn(2, 4, 5000, dtype=torch.float64) + 1e4).float()
    found, exact = Moments.of(x[0], 1).merge(Moments.of(x[1], 1)), Moments.of(x.double(), (0, 2))
    assert ((found.var / exact.var.squeeze(0) - 1).abs() < 1e-4).all()


@quick
@given(seeds, st.floats(0, 2), sizes)
def test_within_selects_as_a_loop_would(seed, width, length):
    x = data(4, 3, length, seed=seed)
    middle = x.mean(2, keepdim=True)
    # Bounds that are elements of x themselves show whether both sides are strict.
    low, high = x.amin(2, keepdim=True), middle + width * (x.amax(2, keepdim=True) - middle)
    found = Moments.of(x, 2, (low, high))
    for n in range(4):
        for c in range(3):
            kept = torch.tensor([v for v in x[n, c].tolist() if low[n, c] < v < high[n, c]], dtype=torch.float64)
            assert found.count[n, c] == len(kept)
            if len(kept):
                assert_same(found.mean[n, c, 0], kept.mean())
                assert_same(found.var[n, c, 0], kept.var(correction=0))


def test_within_is_strict_on_both_sides():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    found = Moments.of(x, 1, (torch.tensor([[1.0]]), torch.tensor([[3.0]])))
    assert (found.count.item(), found.mean.item(), found.var.item()) == (1, 2, 0)


def test_within_an_empty_interval_is_zero():
    found = Moments.of(data(3, 5), 1, (torch.ones(3, 1), torch.ones(3, 1)))
    for value in (found.count, found.mean, found.var):
        assert torch.equal(value, torch.zeros(3, 1, dtype=torch.float64))


def test_within_ignores_what_is_not_finite():
    x = torch.tensor([[math.nan, 1.0, 3.0, math.inf]], requires_grad=True)
    found = Moments.of(x, 1, (torch.tensor([[-10.0]]), torch.tensor([[10.0]])))
    assert (found.count.item(), found.mean.item(), found.var.item()) == (2, 2, 1)
    (found.mean + found.var).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, -0.5, 1.5, 0.0]]))


@quick
@given(st.integers(1, 4), st.integers(1, 3), sizes, sizes, seeds)
def test_pool_groups_is_the_union_of_adjacent_channels(groups, width, n, s, seed):
    x = data(n, groups * width, s, seed=seed)
    cells = Moments.of(x, 2).map(lambda t: t.squeeze(2))
    expected = Moments.of(x.view(n, groups, width * s), 2).map(lambda t: t.expand(-1, -1, width).reshape(n, -1))
    assert_same_moments(cells.pool_groups(groups), Moments(expected.mean, expected.var, width * s))


def test_pool_groups_of_unequal_counts():
    cells = moments_of(ragged([2, 0, 5, 1], seed=0)).map(lambda t: t[:, 0].T)  # one sample, four channels
    grouped = cells.pool_groups(2)
    for group in (0, 1):
        part = cells.map(lambda t, at=2 * group: t[:, at : at + 2])
        assert_same_moments(grouped.map(lambda t, at=2 * group: t[:, at : at + 2]), part.pool(1).map(lambda t: t.expand(1, 2)))


def test_blend_weighs_statistics():
    cells = Moments.of(data(4, 3, 5), 2).map(lambda t: t.squeeze(2))
    sources = [cells, cells.pool(1), cells.pool(0)]
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]], dtype=torch.float64)
    blended = blend(sources, *weights)
    assert_same(blended.mean, 0.5 * sources[0].mean + 0.2 * sources[1].mean + 0.3 * sources[2].mean)
    assert_same(blended.var, 0.1 * sources[0].var + 0.6 * sources[1].var + 0.3 * sources[2].var)
    assert blended.count == cells.count


def test_blend_wants_a_weight_for_every_source():
    cells = Moments.of(data(4, 3), 1)
    with pytest.raises(ValueError, match="zip"):
        blend([cells, cells], torch.ones(3), torch.ones(2))


def test_unbiased_divides_by_one_less():
    x = data(4, 6)
    assert_same(Moments.of(x, 1).unbiased(), x.var(1, correction=1, keepdim=True))
    cells = ragged([2, 5, 9], seed=0)
    assert_same(moments_of(cells).unbiased(), torch.stack([cell.var(1, correction=1, keepdim=True) for cell in cells]))


def test_unbiased_of_one_or_none_is_finite():
    for count in (1, 0, torch.tensor([1.0]), torch.tensor([0.0])):
        assert torch.equal(Moments(torch.ones(1), torch.zeros(1), count).unbiased(), torch.zeros(1))


def test_standardize_brings_to_zero_and_one():
    x = data(4, 200)
    center, scale = Moments.of(x, 1).standardize(eps=1e-12)
    assert_same_moments(Moments.of((x - center) * scale, 1), Moments(torch.zeros(4, 1), torch.ones(4, 1), 200))
    assert Moments.of(torch.ones(1, 3), 1).standardize(eps=0.25)[1].item() == 2


def test_detach_keeps_values_and_cuts_the_graph():
    moments = moments_of([data(3, 4).requires_grad_(), data(3, 5)])
    assert moments.mean.requires_grad
    cut = moments.detach()
    assert not cut.mean.requires_grad
    assert not cut.var.requires_grad
    assert_same_moments(cut, moments)


COUNTS = {"equal": 4, "unequal": torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 0.0]], dtype=torch.float64)}
STEPS = {
    "pool samples": lambda m: m.pool(0),
    "pool channels": lambda m: m.pool(1),
    "pool both": lambda m: m.pool((0, 1)),
    "groups": lambda m: m.pool_groups(1),
    "merge": lambda m: m.merge(m.map(lambda t: t.flip(0))),
    "blend": lambda m: blend([m, m.pool(0)], torch.tensor([0.3, 0.7]), torch.tensor([0.6, 0.4])),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("step", STEPS)
def test_gradients_of(step, count):
    def run(mean, var):
        found = STEPS[step](Moments(mean, var.exp(), COUNTS[count]))
        return found.mean, found.var

    inputs = (data(3, 2).requires_grad_(), data(3, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_no_gradient_passes_through_a_cell_that_counts_nothing():
    mean = torch.tensor([1.0, math.nan, 3.0], requires_grad=True)
    pooled = Moments(mean, torch.tensor([2.0, math.nan, 2.0]), torch.tensor([1.0, 0.0, 3.0])).pool(0)
    (pooled.mean + pooled.var).sum().backward()
    assert torch.equal(mean.grad, torch.tensor([0.25 - 0.75, 0.0, 0.75 + 0.75]))

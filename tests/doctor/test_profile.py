import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import normsmith as ns
from normsmith.doctor import profile as module
from normsmith.doctor.grid import BINS
from normsmith.doctor.profile import Profile
from normsmith.errors import InputError


def profile_of(*batches):
    profile = Profile(batches[0].shape[1])
    for x in batches:
        profile.add(x)
    return profile


def flat(*batches):
    """The finite elements of a single channel's batches, sorted."""
    x = torch.cat([b.double().flatten() for b in batches])
    return x[x.isfinite()].sort().values


DATA = {
    "normal": lambda: torch.randn(9, 1, 37, 13),
    "far away": lambda: torch.randn(9, 1, 500) + 1e4,
    "heavy tails": lambda: torch.randn(9, 1, 500) / torch.rand(9, 1, 500).clamp_min(1e-6),
    "rectified": lambda: torch.randn(9, 1, 500).relu(),
    "two atoms": lambda: torch.bernoulli(torch.full((9, 1, 500), 0.001)),
    "bf16": lambda: torch.randn(9, 1, 500).bfloat16(),
    "float64": lambda: 1e9 + torch.randn(9, 1, 500, dtype=torch.float64),
    "tiny": lambda: torch.randn(9, 1, 500) * 1e-30,
    "constant": lambda: torch.full((9, 1, 3), 0.1),
    "a single element": lambda: torch.full((1, 1), 0.1),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", DATA)
def test_quantiles_lie_between_their_bounds(name, backend):
    x = DATA[name]()
    with ns.backend(backend):
        profile = profile_of(*x.split(4))
    assert profile.tallies.sum() == x.numel()
    fractions = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0)
    values, (found, low, high) = flat(x), profile.quantiles(fractions)
    for k, fraction in enumerate(fractions):
        exact = values[int(fraction * (len(values) - 1))].item()
        slack = 1e-6 * profile.grid.scale.item() + 1e-7 * abs(exact)
        assert low[0, k] - slack <= exact <= high[0, k] + slack, fraction
        assert low[0, k] - slack <= found[0, k] <= high[0, k] + slack
        z = (exact - profile.grid.center.item()) / max(profile.grid.scale.item(), 1e-300)
        if abs(z) < 100:
            assert high[0, k] - low[0, k] <= 1.07 * (1 + abs(z)) / 32 * profile.grid.scale.item()
    assert found[0, 0] == values[0]
    assert found[0, -1] == values[-1]


@pytest.mark.parametrize("name", DATA)
def test_counts_of_tails_lie_between_their_bounds(name):
    x = DATA[name]()
    profile, values = profile_of(*x.split(2)), flat(x)
    at = torch.cat([torch.linspace(values[0].item() - 1, values[-1].item() + 1, 40, dtype=torch.float64), values[::97]])
    at = at + 1e-5 * profile.grid.scale  # a rounding off the borders, to which dyadic data are tied
    below, above = profile.below(at.unsqueeze(0)), profile.above(at.unsqueeze(0))
    fewer, more = (values < at.unsqueeze(1)).sum(1), (values > at.unsqueeze(1)).sum(1)
    for found, exact in ((below, fewer), (above, more)):
        assert (found.low[0] <= exact).all()
        assert (exact <= found.high[0]).all()
        assert (found.low <= found.value).all()
        assert (found.value <= found.high).all()


def test_both_passes_fill_the_same_bins():
    x = torch.randn(8, 6, 20, 20).mul(torch.tensor([1, 1e-3, 1e3, 1, 1, 1]).view(6, 1, 1)) + torch.arange(6).view(6, 1, 1)
    kernel, last = profile_of(x), profile_of(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(kernel.tallies, last.tallies)
    with ns.backend("reference"):
        plain = profile_of(x)
    assert all(torch.equal(a, b) for a, b in zip(kernel.grid, plain.grid, strict=True))
    assert (kernel.tallies - plain.tallies).abs().sum() <= 2  # a multiplication and an addition may round as one


def test_what_is_not_finite_is_in_no_bin():
    x = torch.randn(4, 3, 100)
    x[0, 0, :7], x[1, 1, 0], x[:, 2] = torch.nan, torch.inf, -torch.inf
    for backend in ("auto", "reference"):
        with ns.backend(backend):
            profile = profile_of(x, x)
        assert profile.tallies.sum(1).tolist() == [2 * 393, 2 * 399, 0]
        assert profile.quantiles().value[2].isnan().all()
        profile.add(torch.randn(5, 3, 2))  # the third channel's first finite elements
        assert profile.tallies.sum(1).tolist() == [2 * 393 + 10, 2 * 399 + 10, 10]
        assert profile.quantiles((0.0, 0.5)).value[2].isfinite().all()


def test_a_channel_of_one_value_gets_its_grid_when_a_second_comes():
    late = torch.randn(50, 1, 20)
    profile = profile_of(torch.full((30, 1, 5), 0.3), torch.full((2, 1, 5), 0.3), late)
    assert profile.tallies.sum() == 160 + 1000
    values = flat(torch.full((160,), 0.3), late)
    found, low, high = profile.quantiles((0.1, 0.6, 0.9))
    for k, fraction in enumerate((0.1, 0.6, 0.9)):
        assert low[0, k] - 1e-6 <= values[int(fraction * (len(values) - 1))] <= high[0, k] + 1e-6
    assert found.isfinite().all()


def test_batches_on_one_grid_merge_exactly():
    x = torch.randn(24, 5, 6, 6) * 3 + 1
    x[:, 4] = 2.5
    first = profile_of(x[:8])
    parts = [first, first.fresh(), first.fresh(), Profile(5)]
    parts[1].add(x[8:9])
    parts[2].add(x[9:])
    whole = profile_of(x[:8], x[8:])
    for order in ((0, 1, 2, 3), (2, 1, 0, 3), (3, 1, 2, 0)):
        merged = parts[order[0]]
        for k in order[1:]:
            merged = merged.merge(parts[k])
        assert torch.equal(merged.tallies, whole.tallies)
        assert (merged.blur == 0).all()
        assert torch.equal(merged.grid.scale, whole.grid.scale)
    halves = profile_of(*x[:, :4].split(12)), [profile_of(part) for part in x[:, :4].split(12)]
    assert torch.equal(halves[1][0].merge(halves[1][1]).tallies, halves[0].tallies)  # the same grid by itself


def test_other_grids_cost_a_bin():
    one, two = torch.randn(9, 1, 500), 7 * torch.randn(9, 1, 500) + 20
    for first, second in ((one, two), (two, one)):
        merged = profile_of(first).merge(profile_of(second))
        # Bins of the finer grid lie within those of the coarser one, where borders are dyadic; the other way they cannot.
        assert (0 < merged.blur.item() < 60) if second is two else merged.blur.item() == 0
        assert merged.tallies.sum() == 9000
        values, (_, low, high) = flat(one, two), merged.quantiles()
        for k, fraction in enumerate(module.PERCENTILES):
            assert low[0, k] - 1e-6 <= values[int(fraction * 8999)] <= high[0, k] + 1e-6
    for first, second in ((0.3, 0.3), (0.3, 4.0)):
        merged = profile_of(torch.full((4, 1), first)).merge(profile_of(torch.full((5, 1), second)))
        found = merged.quantiles((0.0, 0.4, 0.6, 1.0))
        expected = torch.tensor([first, first, second, second])
        assert (found.low[0] - 1e-6 <= expected).all()
        assert (expected <= found.high[0] + 1e-6).all()
        assert (merged.blur == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), max_size=5), min_size=1, max_size=5), st.randoms())
def test_the_order_moves_no_element_further_than_the_bounds(batches, random):
    batches = [torch.tensor(b, dtype=torch.float32).view(-1, 1) for b in batches]
    values = flat(*batches)
    shuffled = random.sample(batches, len(batches))
    merged = profile_of(batches[0])
    for b in batches[1:]:
        merged = merged.merge(profile_of(b))
    for profile in (profile_of(*batches), profile_of(*shuffled), merged):
        assert profile.tallies.sum() == len(values)
        found, low, high = profile.quantiles((0.0, 0.3, 0.5, 1.0))
        for k, fraction in enumerate((0.0, 0.3, 0.5, 1.0)):
            if not len(values):
                assert found[0, k].isnan()
                continue
            exact = values[int(fraction * (len(values) - 1))].item()
            slack = 1e-5 * (1 + abs(exact)) * max(1.0, profile.grid.scale.item())
            assert low[0, k] - slack <= exact <= high[0, k] + slack


def test_one_histogram_of_a_layer():
    x = torch.randn(9, 40, 300) * torch.linspace(0.1, 4, 40).view(-1, 1) + torch.linspace(-3, 3, 40).view(-1, 1)
    x[:, 7] = 5.0
    profile = profile_of(x)
    layer, z = profile.pooled(), profile.pooled(standardized=True)
    assert layer.tallies.shape == (1, BINS)
    assert layer.tallies.sum() == x.numel()
    values, (_, low, high) = flat(x), layer.quantiles()
    for k, fraction in enumerate(module.PERCENTILES):
        slack = 1e-5
        assert low[0, k] - slack <= values[int(fraction * (len(values) - 1))] <= high[0, k] + slack
    assert z.tallies.sum() == x.numel() - 2700
    expected = torch.special.ndtri(torch.tensor(module.PERCENTILES).double())
    assert (z.quantiles().value[0] - expected).abs().max() < 0.05
    assert profile_of(torch.full((3, 2, 4), 1.0)).pooled(standardized=True).tallies.sum() == 0


def test_more_elements_than_an_int32_holds(monkeypatch):
    monkeypatch.setattr(module, "FULL", 1000)
    profile = profile_of(torch.randn(10, 2, 60), torch.randn(10, 2, 60))
    assert profile.tallies.dtype == torch.int64
    assert profile.tallies.sum(1).tolist() == [1200, 1200]
    assert profile_of(torch.randn(3, 2)).merge(profile).tallies.dtype == torch.int64


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_empty_batches(shape):
    profile = profile_of(torch.empty(shape), torch.randn(20, 3, 4))
    other = profile_of(torch.empty(shape))
    before = profile.tallies.clone()
    profile.add(torch.empty(shape))
    assert torch.equal(profile.tallies, before)
    assert other.quantiles().value.isnan().all()
    assert other.merge(profile).tallies.sum() == 240
    assert other.pooled().tallies.sum() == 0


def test_state_is_all_there_is():
    x = torch.randn(7, 4, 30)
    profile = profile_of(x)
    again = Profile(4).restored([t.clone() for t in profile.state()])
    profile.add(x * 2)
    again.add(x * 2)
    assert torch.equal(again.tallies, profile.tallies)
    assert torch.equal(again.edges(), profile.edges())
    assert torch.equal(again.moments.facts, profile.moments.facts)


def test_filled_in_inference_mode():
    x = torch.randn(7, 4, 30)
    x[:, 2] = 0.0
    profile = Profile(4)
    with torch.inference_mode():
        profile.add(x)
        profile.add(x + 1)
    assert torch.equal(profile.merge(profile.fresh()).tallies, profile_of(x, x + 1).tallies)
    profile.add(x * 2)
    assert profile.tallies.sum() == 3 * x.numel()


def test_wrong_input():
    with pytest.raises(InputError, match=r"Profile expects floating-point tensors of shape \(N, 3, ...\): got"):
        Profile(3).add(torch.randn(2, 4))


@pytest.mark.gpu
def test_on_a_gpu():
    x = torch.randn(8, 5, 33, 31)
    here, there = profile_of(x, x * 2), profile_of(x.cuda(), x.cuda() * 2)
    assert (here.tallies - there.tallies.cpu()).abs().sum() <= 20
    assert torch.allclose(here.moments.facts, there.moments.facts.cpu(), rtol=1e-4, atol=1e-2)
    assert here.merge(there).tallies.sum() == 4 * x.numel()


def test_a_first_sample_unlike_the_rest_does_not_decide_on_the_grid():
    x = torch.randn(64, 3, 1024, generator=torch.Generator().manual_seed(0))
    x[0] *= 1e-5
    profile = Profile(3)
    profile.add(x)
    low, high = profile.quantiles((0.25, 0.75)).value.unbind(1)
    torch.testing.assert_close(high - low, torch.full((3,), 1.349, dtype=torch.float64), rtol=0.05, atol=0)


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.to(memory_format=torch.channels_last),
    "every second": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "negative": lambda x: torch._neg_view(-x),
    "negative columns": lambda x: torch._neg_view(-x.to(memory_format=torch.channels_last)),
    "one position": lambda x: x.movedim(1, 3).reshape(-1, 3),
    "half": lambda x: x.half(),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_batches_laid_out_alike_or_not(backend):
    batches = [(torch.randn(4, 3, 6, 2) * 16).round() / 8 for _ in range(24)]  # which half precision can hold
    names = [name for name in LAYOUTS for _ in range(3)]
    plain, profile = profile_of(*batches), Profile(3)
    for x, name in zip(batches, names, strict=True):
        laid_out = LAYOUTS[name](x)
        with ns.backend(backend if name == "columns" else "auto"):
            low, high = profile.add(laid_out)
        torch.testing.assert_close(low, laid_out.flatten(2).amin(2) if laid_out.dim() > 2 else laid_out, check_dtype=False)
        torch.testing.assert_close(high, laid_out.flatten(2).amax(2) if laid_out.dim() > 2 else laid_out, check_dtype=False)
    torch.testing.assert_close(profile.moments.facts, plain.moments.facts, rtol=1e-5, atol=1e-4)
    assert torch.equal(profile.tallies, plain.tallies)


def test_a_copy_counts_for_itself():
    first, second = torch.randn(2, 8, 3, 5)
    profile = profile_of(first, second)
    other = copy.deepcopy(profile)
    for _ in range(2):
        other.add(second)
    assert (profile.moments.count == 80).all()
    assert (other.moments.count == 160).all()
    assert (other.tallies.sum(1) == 160).all()

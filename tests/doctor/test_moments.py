from random import Random

import hypothesis.strategies as st
import pytest
import torch
from helpers import assert_same
from hypothesis import example, given, settings

import normsmith as ns
from normsmith.doctor.moments import FourMoments
from normsmith.errors import InputError

LAYOUTS = {
    "rows": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "tokens": lambda x: x.permute(0, 2, 3, 1).flatten(0, 2),
    "negated": lambda x: torch._neg_view(-x),
}


def moments_of(x, **options):
    moments = FourMoments(x.shape[1])
    moments.add(x)
    return moments


def exact(x):
    """Count, mean and central power sums, low and high, by plain float64 of finite data."""
    d = x.double().transpose(0, 1).flatten(1)
    mean = d.mean(1, keepdim=True)
    e = d - mean
    powers = [(e**k).sum(1) for k in (2, 3, 4)]
    return torch.stack([torch.full_like(mean[:, 0], d.shape[1]), mean[:, 0], *powers, d.amin(1), d.amax(1)], 1)


def assert_facts(found, expected, tolerance):
    """Relative to what the powers of the deviations are, as a third power sum cancels for good reasons."""
    std = (expected[:, 2] / expected[:, 0]).sqrt()
    for column, power in ((1, 1), (2, 2), (3, 3), (4, 4)):
        unit = std**power * (expected[:, 0] if power > 1 else 1)
        heavy = expected[:, 4] / (std**4 * expected[:, 0])
        error = (found[:, column] - expected[:, column]).abs() / (unit * (heavy if power > 2 else 1))
        assert error.max() < tolerance, f"power {power}: {error.max()}"
    assert torch.equal(found[:, 0], expected[:, 0])
    assert torch.equal(found[:, 5:7], expected[:, 5:7])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_any_tensor(layout, dtype, backend):
    x = LAYOUTS[layout]((torch.randn(5, 19, 13, 11) ** 3 + 0.5).to(dtype))
    with ns.backend(backend):
        moments = moments_of(x)
    assert_facts(moments.facts, exact(x), 1e-12 if dtype == torch.float64 or backend == "reference" else 1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 1), (7, 1), (3, 5), (2, 17, 1, 1), (1, 3, 4099), (4099, 33), (2, 3, 4, 5, 6), (2049, 2, 1)]
)
def test_odd_sizes(shape):
    x = torch.randn(shape, dtype=torch.float64)
    moments = moments_of(x)
    expected = exact(x)
    if expected[0, 0] == 1:
        expected[:, 2:5] = 0
        assert torch.equal(moments.facts[:, :7], expected)
    else:
        assert_facts(moments.facts, expected, 1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mean_of_many_standard_deviations(dtype, backend):
    x = (torch.randn(16, 3, 40, 40, dtype=torch.float64).exp() + 1e4).to(dtype)
    with ns.backend(backend):
        moments = moments_of(x)
    # Exact for the numbers given, whose own rounding is another matter.
    assert_facts(moments.facts, exact(x), 1e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e15, 1e34])
def test_any_magnitude(magnitude):
    x = torch.randn(4, 3, 600, dtype=torch.float64)
    small = moments_of((x * magnitude).float())
    assert_same(small.std / magnitude, moments_of(x).std, tolerance=1e-5)
    assert_same(small.kurtosis, moments_of(x).kurtosis, tolerance=1e-5)
    assert_same(small.skewness, moments_of(x).skewness, tolerance=1e-5)


def test_the_largest_floats():
    top = torch.finfo(torch.float32).max
    x = torch.tensor([top, -top, top, -top]).repeat(1000).view(1, 1, -1)
    moments = moments_of(x)
    assert moments.not_finite.item() == 0
    assert moments.std.item() == pytest.approx(top, rel=1e-6)
    assert moments.kurtosis.item() == pytest.approx(-2, abs=1e-6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_what_is_not_finite_is_counted_aside(backend):
    x = torch.randn(6, 4, 9, 9)
    spoilt = x.clone()
    spoilt[0, 0, 0, 0], spoilt[1, 0, 2, 2], spoilt[2, 1, 3, :4] = torch.nan, torch.inf, -torch.inf
    spoilt[:, 3] = torch.nan
    with ns.backend(backend):
        moments = FourMoments(4)
        extremes = moments.add(spoilt)
    assert moments.not_finite.tolist() == [2, 4, 0, 6 * 81]
    for c in range(3):
        kept = spoilt[:, c][spoilt[:, c].isfinite()].view(-1, 1)
        assert_same(moments.facts[c, :7], exact(kept)[0], tolerance=1e-5)
    assert moments.facts[3, :5].tolist() == [0] * 5
    for value in (moments.mean, moments.var, moments.skewness, moments.kurtosis):
        assert value.isfinite().all()
    assert torch.equal(extremes.high[:, 2], x[:, 2].amax((1, 2)))
    assert extremes.high[1, 0] == torch.inf
    assert extremes.low[2, 1] == -torch.inf
    assert extremes.high[0, 0].isnan() or extremes.low[0, 0].isnan()


@pytest.mark.parametrize("shape", [(5, 6), (4, 6, 3, 3), (3, 6, 70, 70)])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_extremes_of_cells(shape, layout, backend):
    x = torch.randn(shape)
    if layout == "columns":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    with ns.backend(backend):
        low, high = FourMoments(6).add(x)
    flat = x.reshape(*shape[:2], -1)
    assert torch.equal(low, flat.amin(2))
    assert torch.equal(high, flat.amax(2))


def test_constant_channels_have_no_shape():
    moments = moments_of(torch.tensor([0.1, -3e7, 0.0]).view(1, 3, 1).expand(7, 3, 900))
    assert torch.equal(moments.mean, torch.tensor([0.1, -3e7, 0.0]).double())
    for value in (moments.var, moments.std, moments.skewness, moments.kurtosis):
        assert value.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0)])
def test_empty_batches_change_nothing(shape):
    moments = moments_of(torch.randn(8, 3, 5))
    before = moments.facts.clone()
    low, high = moments.add(torch.empty(shape))
    assert torch.equal(moments.facts, before)
    assert low.shape == high.shape == shape[:2]
    assert FourMoments(3).kurtosis.tolist() == [0, 0, 0]


def test_merging_is_one_pass():
    x = torch.randn(24, 5, 7, 7, dtype=torch.float64).exp()
    whole, parts = moments_of(x), [moments_of(part) for part in x.split([1, 10, 0, 13])]
    one, two, three, four = parts
    assert_facts(one.merge(two).merge(three).merge(four).facts, whole.facts, 1e-12)
    assert_facts(one.merge(two.merge(three.merge(four))).facts, whole.facts, 1e-12)
    assert_facts(four.merge(three).merge(two).merge(one).facts, whole.facts, 1e-12)
    batches = FourMoments(5)
    for part in x.split(5):
        batches.add(part)
    assert_facts(batches.facts, whole.facts, 1e-12)
    assert_facts(whole.pooled().facts, exact(x.reshape(-1, 1)), 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), min_size=1, max_size=6), st.randoms())
@example([[0.0, 2.2e-309]], Random(0))
def test_the_order_does_not_matter(batches, random):
    def total(order):
        moments = FourMoments(1)
        for batch in order:
            moments.add(torch.tensor(batch, dtype=torch.float64).view(-1, 1))
        return moments.facts

    shuffled = random.sample(batches, len(batches))
    one, two = total(batches), total(shuffled)
    reach = (one[:, 6] - one[:, 5]).clamp_min(0).nan_to_num(0, 0, 0)
    scale = one[:, :1] * torch.stack([reach**k for k in range(5)], 1)
    scale[:, 1] = one[:, 1].abs() + reach
    assert ((one - two).abs()[:, :5] <= 1e-11 * scale + 1e-290).all()
    assert torch.equal(one[:, 5:], two[:, 5:])


def test_a_laplace_distribution():
    u = torch.rand(1, 2, 1_000_000, dtype=torch.float64) - 0.5
    moments = moments_of(-u.sign() * (1 - 2 * u.abs()).log())
    assert (moments.kurtosis - 3).abs().max() < 0.15
    assert moments.skewness.abs().max() < 0.05


def test_cells():
    x = torch.randn(4, 3, 50, dtype=torch.float64)
    cells = FourMoments.of_cells(x)
    assert_same(cells.mean.view(4, 3), x.mean(2))
    assert_same(cells.var.view(4, 3), x.var(2, unbiased=False))
    assert_same(FourMoments.of_cells(x.transpose(0, 1)).mean.view(3, 4), x.mean(2).T)
    assert FourMoments.of_cells(x[:, :, :0]).count.tolist() == [0] * 12


def test_standardized():
    moments = moments_of(torch.randn(9, 4, 30, dtype=torch.float64).exp() * 5 - 2)
    moments.facts[3] = moments_of(torch.ones(9, 1)).facts
    z = moments.standardized()
    for value, expected in ((z.mean, 0), (z.std, 1)):
        assert_same(value[:3], torch.full((3,), float(expected), dtype=torch.float64))
    assert_same(z.skewness, moments.skewness)
    assert_same(z.kurtosis, moments.kurtosis)
    assert z.count.tolist() == [270, 270, 270, 0]


def test_a_kept_graph_and_threads_leave_no_trace():
    x = torch.randn(40, 8, 30, 30, requires_grad=True)
    y = x * 2
    first = moments_of(y)
    assert not first.facts.requires_grad
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(moments_of(y).facts, first.facts)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("x", [torch.randn(3, 4), torch.randn(3), torch.ones(2, 3, dtype=torch.int64)])
def test_wrong_input(x):
    with pytest.raises(InputError, match=r"FourMoments expects floating-point tensors of shape \(N, 3, ...\): got"):
        FourMoments(3).add(x)


@pytest.mark.parametrize("size", [2, 4, 6, 7, 12, 16, 49, 64, 513, 4100])
@pytest.mark.parametrize("last", [False, True], ids=["rows", "columns"])
def test_extremes_of_cells_of_any_size(size, last):
    """Small cells are halved together, large ones cut into parts; a NaN is in those of its cell alone."""
    torch.manual_seed(0)
    x = torch.randn(5, 19, size)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if last else x
    x[3, 17, size - 1] = torch.nan
    moments = FourMoments(19)
    low, high = moments.add(x)
    held = torch.ones(5, 19, dtype=torch.bool)
    held[3, 17] = False
    assert torch.equal(low[held], x.amin(2)[held])
    assert torch.equal(high[held], x.amax(2)[held])
    assert bool(low[3, 17].isnan() | high[3, 17].isnan())
    clean = x.double()[:, 17].flatten()
    assert moments.mean[17] == pytest.approx(float(clean[clean.isfinite()].mean()), abs=1e-6)


def test_a_constant_stays_one_whatever_its_count():
    values = torch.linspace(0.01, 3, 64)
    for count in (49, 51, 2499, 5001):
        moments = FourMoments(64)
        for _ in range(2):
            moments.add(values.expand(count, 64).contiguous())
        assert torch.equal(moments.mean, values.double())
        assert not moments.var.any()

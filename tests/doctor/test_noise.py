import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normsmith.doctor.cells import CHANNELS, SAMPLES, Cells, chosen, thinned
from normsmith.doctor.noise import SIZES, independent, noise_curves


def cells_of(x, size=32):
    cells = Cells(x.shape[1])
    for part in x.split(size):
        cells.add(part)
    return cells


def curve_of(x, kurtosis=0.0):
    positions = x[0, 0].numel()
    return noise_curves([(cells_of(x), torch.full((min(x.shape[1], CHANNELS),), kurtosis, dtype=torch.float64), positions)])[0]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 9), (64, 64, 5, 5)])
def test_independent_elements_are_as_noisy_as_theory_says(shape):
    x = drawn(*shape) * 3 + 7
    curve = curve_of(x)
    assert [point.batch for point in curve] == list(SIZES)
    for point in curve:
        assert point.mean_noise == pytest.approx(point.theory_mean, rel=0.05)
        if point.batch * x[0, 0].numel() >= 64:
            assert point.std_noise == pytest.approx(point.theory_std, rel=0.1)
    assert independent(curve) == pytest.approx(x[0, 0].numel(), rel=0.1)


def test_tails_make_the_deviation_noisier():
    """Of Laplace the excess kurtosis is 3."""
    x = torch.distributions.Laplace(0.0, 1.0)
    torch.manual_seed(0)
    curve = curve_of(x.sample((64, 64, 16)).double(), kurtosis=3.0)
    gauss = curve_of(drawn(64, 64, 16))
    point, plain = curve[3], gauss[3]
    assert point.std_noise == pytest.approx(point.theory_std, rel=0.15)
    assert point.std_noise == pytest.approx(plain.std_noise * 2.5**0.5, rel=0.15)


def test_samples_that_are_of_one_piece():
    """Brightness: all positions of a sample move together, so that a sample is worth one element for the mean, however many it has."""
    x = drawn(64, 16, 1).expand(-1, -1, 49) + 0.1 * drawn(64, 16, 49, seed=1)
    curve = curve_of(x)
    assert independent(curve) == pytest.approx(1.0, abs=0.15)
    assert curve[4].mean_noise == pytest.approx(16**-0.5, rel=0.1)
    assert curve[4].mean_noise > 5 * curve[4].theory_mean


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 50))
def test_units_do_not_matter(scale, shift, seed):
    x = drawn(48, 5, 4, seed=seed)
    one, two = curve_of(x), curve_of(x * scale + shift * scale)
    for a, b in zip(one, two, strict=True):
        assert (a.mean_noise, a.std_noise) == pytest.approx((b.mean_noise, b.std_noise), rel=1e-3)


def test_noise_falls_with_the_batch():
    curve = curve_of(drawn(64, 8, 4).exp())
    for key in ("mean_noise", "std_noise", "theory_mean", "theory_std"):
        values = [getattr(point, key) for point in curve]
        assert values == sorted(values, reverse=True)


def test_too_few_samples_or_nothing_that_varies():
    assert curve_of(drawn(7, 3)) == ()
    assert curve_of(torch.ones(32, 3, 4)) == ()
    dead = drawn(32, 3, 4)
    dead[:, 1] = 2.0
    assert curve_of(dead)


# --- the cells ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 64, 100, 256])
@pytest.mark.parametrize("form", ["rows", "last", "flat"])
def test_cells_are_those_of_the_chosen_channels(channels, form):
    x = drawn(40, channels) if form == "flat" else drawn(40, channels, 3, 5)
    x = x.to(memory_format=torch.channels_last) if form == "last" else x
    cells = cells_of(x.float())
    kept = chosen(channels)
    assert len(kept) == min(channels, CHANNELS)
    flat = x.flatten(2)[:, kept] if x.dim() > 2 else x[:, kept].unsqueeze(2)
    found = cells.mean_and_var
    torch.testing.assert_close(found[0], flat.mean(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], flat.var(2, unbiased=False), rtol=1e-4, atol=1e-5)
    assert thinned(x, 2).shape[:2] == (2, len(kept))


def test_cells_are_bounded_and_spread():
    cells = Cells(3)
    for index in range(10):
        cells.add(torch.full((100, 3, 2), float(index)))
    means = cells.mean_and_var[0]
    assert len(means) == SAMPLES
    assert means[:, 0].unique().tolist() == [0.0, 1.0]
    broken = torch.randn(4, 3, 2)
    broken[1, 0, 0] = torch.inf
    other = Cells(3)
    other.add(broken)
    assert other.mean_and_var.shape == (2, 3, 3), "a sample that is not finite says nothing"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=2, max_size=3))
def test_cells_merge(sizes):
    parts = [drawn(size, 3, 2, seed=i) for i, size in enumerate(sizes)]
    streams = [Cells(3) for _ in parts]
    for stream, x in zip(streams, parts, strict=True):
        if len(x):
            stream.add(x)
    merged = streams[0]
    for stream in streams[1:]:
        merged = merged.merge(merged.restored(stream.state()))
    every = torch.cat([s.mean_and_var for s in streams], 1)
    found = merged.mean_and_var
    assert found.shape[1] == min(every.shape[1], SAMPLES)
    rows = {tuple(row) for row in every[0].tolist()}
    assert {tuple(row) for row in found[0].tolist()} <= rows

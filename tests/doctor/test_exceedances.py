import math

import pytest
import torch

from normsmith.doctor.exceedances import THRESHOLDS, exceedances, gaussian_fraction
from normsmith.doctor.profile import Profile


def profile_of(*batches):
    profile = Profile(batches[0].shape[1])
    for x in batches:
        profile.add(x)
    return profile


def test_seven_deviations():
    assert round(1 / gaussian_fraction(7)) == 390_682_215_445


def exact(x):
    d = x.double().transpose(0, 1).flatten(1)
    z = (d - d.mean(1, keepdim=True)) / d.std(1, keepdim=True, unbiased=False)
    return torch.stack([(z.abs() > t).sum(1) for t in THRESHOLDS], 1)


@pytest.mark.parametrize("shift", [0.0, 0.37, 1e3])
def test_a_gaussian(shift):
    x = torch.randn(64, 4, 128, 32, dtype=torch.float64) * 1.4 + shift
    found = exceedances(profile_of(*x.split(16)))
    counts = exact(x)
    assert ((found.low <= counts) & (counts <= found.high)).all()
    assert ((found.count - found.expected).abs() < 4.5 * found.uncertainty + 0.01 * found.expected + 1e-3)[:, :3].all()
    assert ((found.count - counts).abs() <= 0.02 * counts + 4).all()
    assert (found.ratio[:, 0] - 1).abs().max() < 0.06
    assert (found.chance[:, :3] > 1e-5).all()


def test_exactly_the_outliers_that_were_put_in():
    x = torch.randn(100, 3, 1000).clamp(-5, 5)
    places = torch.randperm(100_000)[:100]
    for c in range(3):
        row = x[:, c].reshape(-1)
        row[places] = 10.0 * torch.where(torch.rand(100) < 0.5, -1.0, 1.0)
        x[:, c] = row.view(100, 1000)
    found = exceedances(profile_of(*x.split(10)))
    assert found.count[:, -1].tolist() == [100.0] * 3
    assert found.low[:, -1].tolist() == found.high[:, -1].tolist() == [100.0] * 3
    assert found.fraction[:, -1].tolist() == [0.001] * 3
    assert (found.ratio[:, -1] > 1e8).all()
    assert (found.chance[:, -1] < 1e-100).all()


def test_outliers_beyond_the_grid():
    x = torch.randn(50, 1, 2000)
    later = torch.randn(50, 1, 2000)
    later[3, 0, :3] = torch.tensor([1e3, 1e6, -1e6])
    found = exceedances(profile_of(x, later))
    assert ((found.low <= exact(torch.cat([x, later]))) & (exact(torch.cat([x, later])) <= found.high)).all()


def test_nothing_to_exceed():
    profile = profile_of(torch.cat([torch.ones(9, 1, 5), torch.full((9, 1, 5), torch.nan)], 1))
    found = exceedances(profile, (1.0, 2.0))
    assert found.count.tolist() == [[0, 0], [0, 0]]
    for value in (found.fraction, found.ratio, found.uncertainty, found.chance):
        assert value.isfinite().all()
    assert math.isclose(gaussian_fraction(1), 0.3173105, rel_tol=1e-6)

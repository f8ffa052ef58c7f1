import math

import pytest
import torch

from normsmith.doctor.moments import FourMoments
from normsmith.doctor.normality import distance, normality
from normsmith.doctor.profile import Profile


def moments_of(x):
    moments = FourMoments(x.shape[1])
    moments.add(x)
    return moments


@pytest.mark.parametrize("n", [8, 20, 25, 400])
def test_k2_is_that_of_scipy(n):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    x = torch.cat([torch.randn(n, 1), torch.rand(n, 1), torch.randn(n, 1).exp()], 1).double()
    found = normality(moments_of(x))
    for c in range(3):
        expected = stats.normaltest(x[:, c].numpy())
        assert found.k2[c].item() == pytest.approx(expected.statistic, rel=1e-9)
        assert found.k2_chance[c].item() == pytest.approx(expected.pvalue, rel=1e-9)
        bera = stats.jarque_bera(x[:, c].numpy())
        assert found.jarque_bera[c].item() == pytest.approx(bera.statistic, rel=1e-9)


@pytest.mark.parametrize(
    ("n", "k2", "chance", "bera"),
    [
        (8, 1.7451672679441534, 0.41787052887416176, 1.0626257857627568),
        (25, 4.837968391931639, 0.08901199028989934, 3.7706478032143407),
        (400, 406.37626641352233, 5.708407395036122e-89, 42.20538431058313),
    ],
)
def test_what_scipy_said(n, k2, chance, bera):
    found = normality(moments_of((torch.arange(1, n + 1).double() ** 2).sin().exp().unsqueeze(1)))  # by scipy 1.17.1
    assert found.k2.item() == pytest.approx(k2, rel=1e-9)
    assert found.k2_chance.item() == pytest.approx(chance, rel=1e-7)
    assert found.jarque_bera.item() == pytest.approx(bera, rel=1e-9)


def test_a_gaussian_is_rejected_as_often_as_announced():
    found = normality(moments_of(torch.randn(200, 4000, dtype=torch.float64)))
    for level in (0.1, 0.05, 0.01):
        share = (found.k2_chance < level).double().mean().item()
        assert share == pytest.approx(level, abs=4.5 * math.sqrt(level / 4000) + 0.3 * level)


def test_others_are_seen():
    x = torch.cat([torch.randn(5000, 1), torch.rand(5000, 1), torch.randn(5000, 1).exp(), torch.randn(5000, 1) ** 3], 1)
    found = normality(moments_of(x))
    assert found.k2_chance[0] > 1e-4
    assert (found.k2_chance[1:] < 1e-20).all()
    assert (found.jarque_bera_chance[1:] < 1e-20).all()
    assert found.effect[0] < 0.1
    assert found.effect[1].item() == pytest.approx(1.2 / math.sqrt(24), rel=0.1)


def test_nothing_to_judge():
    x = torch.cat([torch.ones(50, 1), torch.full((50, 1), torch.nan)], 1)
    for found in (normality(moments_of(x)), normality(moments_of(torch.randn(7, 2))), normality(FourMoments(2))):
        assert found.k2.tolist() == [0, 0]
        assert found.k2_chance.tolist() == [1, 1]
        assert found.jarque_bera.tolist() == [0, 0]
    profile = Profile(2)
    profile.add(x)
    assert distance(profile).tolist() == [0, 0]


def test_the_distance():
    x = torch.cat([torch.randn(20000, 1), torch.rand(20000, 1), (torch.rand(20000, 1) < 0.2).float()], 1)
    profile = Profile(3)
    for part in x.split(3000):
        profile.add(part)
    values = x.double().sort(0).values
    z = (values - values.mean(0)) / values.std(0, unbiased=False)
    steps = torch.arange(20001).double().unsqueeze(1) / 20000
    gaussian = torch.special.ndtr(z)
    exact = torch.maximum((steps[1:] - gaussian).abs(), (steps[:-1] - gaussian).abs()).amax(0)
    exact[2] = (0.8 - torch.special.ndtr(z[0, 2])).clamp_min(torch.special.ndtr(z[0, 2]))  # of values, not of steps within ties
    found, fullest = distance(profile), profile.tallies.amax(1) / 20000
    assert (found <= exact + 1e-3).all()
    assert (found >= exact - fullest - 1e-3).all()
    assert found[0] < 0.02
    assert found[2] > 0.2

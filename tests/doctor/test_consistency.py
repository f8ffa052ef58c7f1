import pytest
import torch

from normsmith.doctor.consistency import PARTS, consistency


def test_of_gaussian_data_it_is_that_of_theory():
    """The variance of the mean of 16 in 128 is var (1/16 - 1/128) / positions; filtering changes next to nothing."""
    torch.manual_seed(0)
    found = consistency(torch.randn(128, 64, 5, 5) * 3 + 2)
    assert (found.small, found.large) == (16, 128)
    assert found.plain.mean == pytest.approx((1 / 16 - 1 / 128) / 25, rel=0.15)
    assert found.plain.var == pytest.approx(2 * (1 / 16 - 1 / 128) / 25, rel=0.15)
    assert found.filtered.mean == pytest.approx(found.plain.mean, rel=0.1)


def test_without_outliers_filtering_is_nothing():
    x = torch.rand(64, 8, 3, 3)  # all within four deviations
    found = consistency(x)
    for other in (found.filtered, found.mixed):
        assert (other.mean, other.var) == pytest.approx((found.plain.mean, found.plain.var), rel=1e-5)


def test_rare_outliers_are_filtered():
    torch.manual_seed(0)
    x = torch.randn(128, 16, 6, 6)
    x[torch.rand(x.shape) < 1e-3] = 40.0
    found = consistency(x)
    assert found.filtered.var < found.plain.var / 5
    assert found.mixed.var > found.filtered.var, "against the whole with its outliers, filtering is a bias"


def test_against_plain_torch():
    torch.manual_seed(1)
    x = torch.randn(16, 3, 7, dtype=torch.float64)
    x[0, 0, 0] = 50.0

    def kept(part):
        mean, var = part.mean(), part.var(unbiased=False)
        return part[(part - mean).abs() < 4 * var.sqrt()]

    expected = {"plain": [], "filtered": []}
    for c in range(3):
        for part in x[:, c].split(2):
            for kind, choose in (("plain", lambda p: p.flatten()), ("filtered", kept)):
                small, large = choose(part.flatten()), choose(x[:, c].flatten())
                expected[kind].append(float((small.mean() - large.mean()) ** 2 / large.var(unbiased=False)))
    found = consistency(x)
    assert found.plain.mean == pytest.approx(sum(expected["plain"]) / 24)
    assert found.filtered.mean == pytest.approx(sum(expected["filtered"]) / 24)


def test_too_few_samples_or_constant():
    assert consistency(torch.randn(PARTS - 1, 3)) is None
    assert consistency(torch.ones(16, 3, 4)) is None
    dead = torch.randn(16, 3, 4)
    dead[:, 0] = 1.0
    assert consistency(dead).plain.mean > 0

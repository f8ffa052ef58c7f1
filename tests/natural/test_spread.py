import pytest
import torch
from helpers import assert_same
from natural.helpers_natural import covariance

from normsmith.natural.spread import Spread


@pytest.mark.parametrize("groups", [1, 3])
def test_merged_spreads_are_that_of_all_rows(groups):
    rows = torch.randn(40, 6).double() * 2 + torch.linspace(-50, 50, 40).double()[:, None]
    whole = Spread.none(6, groups, rows.device)
    for part in (rows[:1], rows[1:30], rows[30:30], rows[30:]):
        whole = whole.and_of(Spread.of(part, groups))
    assert whole.number == 40
    assert_same(whole.mean, rows.mean(0), tolerance=1e-12)
    for group, parts in enumerate(rows.view(40, groups, -1).unbind(1)):
        assert_same(whole.covariance()[group], covariance(parts), tolerance=1e-12)
        assert_same(whole.covariance(centred=False)[group], covariance(parts, False), tolerance=1e-12)


def test_a_mean_far_from_zero_does_not_cancel():
    rows = torch.randn(500, 4) + 3e3
    assert_same(Spread.of(rows, 1).covariance()[0], covariance(rows.double()), tolerance=1e-5)

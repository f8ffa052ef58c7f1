"""The operations of mixtures: the loops against the reference, in every layout, with and without a mask; powers of two."""

import math

import numba
import numpy as np
import pytest
import torch
from helpers import assert_same
from mixtures import a_density, every_result, random

from normsmith.kernels import mixtures_reference as reference
from normsmith.kernels.cpu import mixture as cpu
from normsmith.kernels.cpu.exponential import power_of_two
from normsmith.kernels.mixtures import Density

# A single position, a single element, several runs with a remainder, short cells that a block takes several of, many channels.
SIZES = [(600, 6, 1), (1, 1, 1), (3, 3, 5003), (40, 18, 49)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("joint", [False, True], ids=["channel", "joint"])
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cpu_equals_the_reference(size, joint, columns, dtype):
    for number, masked in ((1, False), (3, False), (3, True)):
        x, dy = random(*size), random(*size, seed=9)
        if masked:
            x = torch.where(random(*size, seed=11) > 0.5, math.nan, x)
        x, dy = (t.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) if columns else t.to(dtype) for t in (x, dy))
        density = Density(*(t.to(dtype) for t in a_density(number, size[1], joint).tensors()), joint)
        wide = Density(*(t.double() for t in density.tensors()), joint)
        found = every_result(cpu, x, dy, density, masked)
        expected = every_result(reference, x.double(), dy.double(), wide, masked)
        for what, value in expected.items():
            assert_same(
                found[what], value, f"{what}, {number} components, masked {masked}", 4e-4 if dtype == torch.float32 else None
            )
        assert found["y"].stride() == x.stride()


def test_shares_of_far_points_add_up_to_one():
    """Where every density has underflowed long before, the nearest component has all of the point, and no K copies of it are made."""
    x = torch.tensor([-1e20, -1e6, 0.0, 1e6, 1e20]).view(5, 1, 1)
    mean = torch.tensor([[-1.0], [0.0], [1.0]])
    density = Density.of(torch.full((3, 1), -1.0), mean, torch.ones(3, 1))
    for backend in (cpu, reference):
        assert_same(backend.weighted_moments(x[1:4], density).count.sum(0), torch.tensor([3.0]), "sum of the shares")
        assert backend.weighted_moments(x[3:4], density).count[2] == 1
        assert backend.weighted_affine(x[1:4], density, mean, mean * 0 + 1, mean[:1] * 0).isfinite().all()


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_clusters_far_from_each_other_and_from_zero_lose_nothing(backend):
    """Means 1e4 deviations apart: sums of squares from one origin would lose the variance."""
    ids = torch.arange(30_000) % 3
    x = (random(30_000) + ids * 1e4 + 5e3).float().view(1, 1, -1)
    mean = torch.tensor([[5e3], [1.5e4], [2.5e4]])
    found = backend.weighted_moments(x, Density.of(torch.zeros(3, 1), mean, torch.ones(3, 1)))
    for k in range(3):
        own = x.double().view(-1)[ids == k]
        assert_same(found.var[k, 0], own.var(unbiased=False), "variance", 1e-4)
        assert abs(found.mean[k, 0] - own.mean()) < 4e-3  # two roundings there


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 2e-7), (np.float64, 3e-16)])
def test_powers_of_two(dtype, error):
    @numba.njit
    def all_of(values, zero):
        out = np.empty_like(values)
        for i in range(values.size):
            out[i] = power_of_two(values[i], zero)
        return out

    values = np.concatenate([np.linspace(-80, 0, 200_001), -np.logspace(-12, 0, 1000)]).astype(dtype)
    expected = np.exp2(values.astype(np.longdouble))
    assert np.max(np.abs(all_of(values, dtype(0)) / expected - 1)) < error
    far = np.array([-1e4, -np.inf, -0.0], dtype)
    assert all_of(far, dtype(0)).tolist() == [0, 0, 1]
    assert np.isnan(all_of(np.array([np.nan], dtype), dtype(0)))


def test_runs_repeat_to_the_bit_on_any_number_of_threads():
    x, dy, density = random(8, 5, 3000).float(), random(8, 5, 3000, seed=9).float(), a_density(3, 5, False)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(every_result(cpu, x, dy, density, False))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][what], results[1][what]) for what in results[0])

"""The derivative of a blend in loops against that in torch operations."""

import pytest
import torch

from normsmith import arithmetic
from normsmith.kernels import cpu
from normsmith.moments import Moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (3, 1), (1, 1)])
def test_the_loops_that_weigh_a_blend_find_what_torch_finds(dtype, shape):
    cells = Moments(torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype), 5)
    every = [cells, cells.pool(1), cells.pool(0), cells.pool((0, 1))]
    d_mean, d_var = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    for sources in (every[:3], every[1:3], every, every[:1]):
        p, q = torch.rand(2, len(sources), dtype=dtype)
        found, expected = (weigh(d_mean, d_var, sources, p, q) for weigh in (cpu.weigh, arithmetic.weigh))
        for one, other in zip((*found[:2], *sum(found[2], ())), (*expected[:2], *sum(expected[2], ())), strict=True):
            torch.testing.assert_close(one, other)

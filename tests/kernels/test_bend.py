"""Activations in the affine map: the loops and the reference against torch's own functions behind it, by autograd."""

import math
from itertools import product
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import Tensor

from normsmith.activation import Activation
from normsmith.kernels import Bend, Bent, Kind, cpu, reference

SLOPE = 0.25
KINDS = get_args(Kind)
BACKENDS = {"cpu": cpu, "reference": reference}
# A cell of one block and one for several cores; statistics of cells and shared; either layout and type: each pair somewhere.
CASES = [
    (backend, kind, ("rows", "columns")[i % 2], (torch.float32, torch.float64)[i // 2 % 2], (i + j) % 2 == 0)
    for j, (backend, kind) in enumerate(product(BACKENDS, KINDS))
    for i in range(4)
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bend_of(kind: Kind, like: Tensor) -> Bend:
    level = torch.full_like(like, SLOPE if kind == "leaky_relu" else 0.0)
    return Bend(kind, random(*like.shape, seed=5).to(like.dtype) if kind == "floor" else level)


def by_torch(y: Tensor, bend: Bend) -> Tensor:
    if bend.kind == "floor":
        return torch.where(y > bend.level.unsqueeze(2), y, bend.level.unsqueeze(2))
    return F.leaky_relu(y, SLOPE) if bend.kind == "leaky_relu" else Activation(bend.kind)(y)


@pytest.mark.parametrize(("backend", "kind", "layout", "dtype", "shared"), CASES, ids=str)
def test_equals_the_function_of_torch(backend, kind, layout, dtype, shared):
    size, operations = ((5, 6, 1200) if shared else (3, 4, 37)), BACKENDS[backend]
    x, dy = ((random(*size, seed=seed) * 3).to(dtype) for seed in (0, 9))
    x[0, 1, 5] = 0.0
    statistics = [random(1 if shared else size[0], size[1], seed=seed).to(dtype) for seed in range(1, 7)]
    center, scale, bias, slope, pivot, offset = statistics
    center[0, 1] = bias[0, 1] = 0.0  # so that one y is zero, where the derivatives are a matter of choice
    bend = bend_of(kind, scale)
    laid = [t if layout == "rows" else t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, dy)]

    wide = [t.double().requires_grad_() for t in (x, scale, bias, bend.level)]
    before = (wide[0] - center.double().unsqueeze(2)) * wide[1].unsqueeze(2) + wide[2].unsqueeze(2)
    y = by_torch(before, Bend(kind, wide[3]))
    d_x, d_scale, d_bias, d_level = torch.autograd.grad(y, wide, dy.double(), allow_unused=True)

    assert_same(operations.cell_affine(laid[0], center, scale, bias, bend), y.to(dtype), "output")
    bent = Bent(center, scale, bias, bend)
    sums = operations.cell_grad_sums(laid[1], laid[0], center, shared=shared, bent=bent)
    assert_same(sums.total, d_bias.to(dtype), "gradient of the bias")
    assert_same(sums.product, d_scale.to(dtype), "gradient of the scale")
    assert (sums.below is None) == (kind != "floor")
    if sums.below is not None:
        assert_same(sums.below, d_level.to(dtype), "gradient of the level")
    bracket = (x - pivot.unsqueeze(2)) * slope.unsqueeze(2) + offset.unsqueeze(2)
    found = operations.cell_grad_input(laid[1], laid[0], scale, slope, pivot, offset, None, bent)
    assert_same(found, d_x.to(dtype) + bracket, "gradient of x")
    nothing = torch.zeros_like(scale)
    found = operations.cell_grad_input(laid[1], laid[0], scale, slope, pivot, offset, (nothing, nothing), bent)
    assert_same(found, d_x.to(dtype), "gradient of x between bounds that nothing lies between")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "floor"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_what_is_not_finite_goes_the_way_it_goes_in_torch(kind, layout):
    # Enough for torch's vectorised loop alone: at the end of a tensor its hardswish hands on the gradient of a NaN.
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -3.0, 3.0, 6.0, 200.0, -200.0, 1e-30]).repeat(32).view(1, 2, 160)
    x = x if layout == "rows" else x.transpose(1, 2).contiguous().transpose(1, 2)
    one, none = torch.ones(1, 2), torch.zeros(1, 2)
    bend = Bend(kind, torch.full((1, 2), SLOPE if kind == "leaky_relu" else 0.0))
    found = cpu.cell_affine(x, none, one, none, bend)
    leaf = x.clone().requires_grad_()
    y = by_torch(leaf, bend)
    torch.testing.assert_close(found, y, equal_nan=True)
    y.backward(torch.full_like(y, 2.0))
    dx = cpu.cell_grad_input(torch.full_like(x, 2.0), x, one, none, none, none, (none, none), Bent(none, one, none, bend))
    torch.testing.assert_close(dx, leaf.grad, equal_nan=True)

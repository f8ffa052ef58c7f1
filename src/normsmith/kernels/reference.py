"""The four operations in plain torch: for every device, as the oracle of the other backends, and differentiable as they stand."""

import torch
from torch import Tensor

from normsmith.arithmetic import lines, pool, share, standardize, unstandardize, weigh, weighted_sum
from normsmith.kernels import Bounds, Floor, Sums
from normsmith.moments import Moments, Pooled

__all__ = [
    "cell_affine",
    "cell_grad_input",
    "cell_grad_sums",
    "cell_moments",
    "cells_later",
    "lines",
    "move_average",
    "pool",
    "share",
    "standardize",
    "statistics_type",
    "unstandardize",
    "weigh",
    "weighted_sum",
    "widened",
]


def statistics_type(x: Tensor) -> torch.dtype:
    """The type statistics of `x` are taken in: at least float32."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def widened(x: Tensor) -> Tensor:
    return x.to(statistics_type(x))


def _inside(x: Tensor, within: Bounds) -> Tensor:
    low, high = (bound.unsqueeze(2) for bound in within)
    return (low < x) & (x < high)


def _above(x: Tensor, floor: Floor) -> Tensor:
    """Where y is above the floor."""
    center, scale, bias, level = (t.unsqueeze(2) for t in floor)
    return (widened(x) - center) * scale + bias > level


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled:
    bounds = None if within is None else (within[0].unsqueeze(2), within[1].unsqueeze(2))
    found = Moments.of(widened(x), (0, 2) if shared else 2, bounds).map(lambda t: t.squeeze(2))
    return Pooled(found.mean, found.var, found.count)


cells_later = cell_moments  # nothing is gained by waiting


def cell_affine(x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, floor: Tensor | None = None) -> Tensor:
    y = (widened(x) - center.unsqueeze(2)) * scale.unsqueeze(2) + bias.unsqueeze(2)
    return (y if floor is None else torch.maximum(y, floor.unsqueeze(2))).to(x.dtype)


def cell_grad_sums(
    dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False, floor: Floor | None = None
) -> Sums:
    grad, moved = widened(dy), widened(x) - center.unsqueeze(2)
    product = grad * moved
    below = None
    if within is not None or floor is not None:
        keep = _inside(x, within) if within is not None else _above(x, floor) if floor is not None else None
        assert keep is not None
        below = None if floor is None else _total(torch.where(keep, 0, grad), shared)
        grad, product = torch.where(keep, grad, 0), torch.where(keep, product, 0)
    return Sums(_total(grad, shared), _total(product, shared), below)


def _total(values: Tensor, shared: bool) -> Tensor:
    return values.sum((0, 2)).unsqueeze(0) if shared else values.sum(2)


def cell_grad_input(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    slope: Tensor,
    pivot: Tensor,
    offset: Tensor,
    within: Bounds | None = None,
    floor: Floor | None = None,
) -> Tensor:
    moved = (widened(x) - pivot.unsqueeze(2)) * slope.unsqueeze(2) + offset.unsqueeze(2)
    if within is not None:
        moved = torch.where(_inside(x, within), moved, 0)
    direct = widened(dy) * scale.unsqueeze(2)
    return ((direct if floor is None else torch.where(_above(x, floor), direct, 0)) + moved).to(x.dtype)


def move_average(averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float) -> None:
    for average, value, factor in zip(averages, values, factors, strict=True):
        new = value.reshape_as(average).to(average.dtype)
        average.lerp_(new if factor == 1 else new * factor, step)

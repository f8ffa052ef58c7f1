"""The four operations in plain torch: for every device, as the oracle of the other backends, and differentiable as they stand."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.arithmetic import lines, pool, share, standardize, unstandardize, weigh, weighted_sum
from normsmith.kernels import Bend, Bent, Bounds, Sums
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


def _bent(y: Tensor, bend: Bend) -> Tensor:
    """The activation of y: torch's own, but for numbers that are a statistic."""
    if bend.kind == "floor":
        return torch.maximum(y, bend.level.unsqueeze(2))
    if bend.kind == "leaky_relu":
        return torch.where(y > 0, y, y * bend.level.unsqueeze(2))
    found: Tensor = getattr(F, bend.kind)(y)
    return found


def _through(grad: Tensor, x: Tensor, bent: Bent) -> Tensor:
    """The gradient of y before the activation."""
    center, scale, bias, level = (t.unsqueeze(2) for t in (*bent[:3], bent.bend.level))
    y = (widened(x) - center) * scale + bias
    found: Tensor
    match bent.bend.kind:
        case "floor":
            found = torch.where(y <= level, 0, grad)
        case "relu":
            found = torch.ops.aten.threshold_backward(grad, y, 0)
        case "relu6":
            found = torch.ops.aten.hardtanh_backward(grad, y, 0, 6)
        case "leaky_relu":
            found = torch.where(y > 0, grad, grad * level)
        case "silu":
            found = torch.ops.aten.silu_backward(grad, y)
        case "hardswish":
            found = torch.ops.aten.hardswish_backward(grad, y)
    return found


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled:
    bounds = None if within is None else (within[0].unsqueeze(2), within[1].unsqueeze(2))
    found = Moments.of(widened(x), (0, 2) if shared else 2, bounds).map(lambda t: t.squeeze(2))
    return Pooled(found.mean, found.var, found.count)


def cells_later(x: Tensor, *, batch: bool = False) -> Pooled | None:
    return None  # nothing is gained by waiting


def cell_affine(x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, bend: Bend | None = None) -> Tensor:
    y = (widened(x) - center.unsqueeze(2)) * scale.unsqueeze(2) + bias.unsqueeze(2)
    return (y if bend is None else _bent(y, bend)).to(x.dtype)


def cell_grad_sums(
    dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False, bent: Bent | None = None
) -> Sums:
    grad, moved = widened(dy), widened(x) - center.unsqueeze(2)
    below = None
    if bent is not None:
        whole, grad = grad, _through(grad, x, bent)
        below = _total(whole - grad, shared) if bent.bend.kind == "floor" else None
    product = grad * moved
    if within is not None:
        keep = _inside(x, within)
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
    bent: Bent | None = None,
) -> Tensor:
    moved = (widened(x) - pivot.unsqueeze(2)) * slope.unsqueeze(2) + offset.unsqueeze(2)
    if within is not None:
        moved = torch.where(_inside(x, within), moved, 0)
    grad = widened(dy) if bent is None else _through(widened(dy), x, bent)
    return (grad * scale.unsqueeze(2) + moved).to(x.dtype)


def move_average(averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float) -> None:
    for average, value, factor in zip(averages, values, factors, strict=True):
        for new in value.reshape(-1, *average.shape).to(average.dtype):
            average.lerp_(new if factor == 1 else new * factor, step)

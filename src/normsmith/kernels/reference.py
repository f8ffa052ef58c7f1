"""The four operations in plain torch: for every device, as the oracle of the other backends, and differentiable as they stand."""

from dataclasses import replace

import torch
from torch import Tensor

from normsmith.kernels import Bounds
from normsmith.moments import Moments


def statistics_type(x: Tensor) -> torch.dtype:
    """The type statistics of `x` are taken in: at least float32."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def widened(x: Tensor) -> Tensor:
    return x.to(statistics_type(x))


def _inside(x: Tensor, within: Bounds) -> Tensor:
    low, high = (bound.unsqueeze(2) for bound in within)
    return (low < x) & (x < high)


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Moments:
    bounds = None if within is None else (within[0].unsqueeze(2), within[1].unsqueeze(2))
    return replace(Moments.of(widened(x), (0, 2) if shared else 2, bounds).map(lambda t: t.squeeze(2)), direct=True)


def cell_affine(x: Tensor, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = (widened(x) - center.unsqueeze(2)) * scale.unsqueeze(2) + bias.unsqueeze(2)
    return y.to(x.dtype)


def cell_grad_sums(
    dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False
) -> tuple[Tensor, Tensor]:
    grad = widened(dy)
    if within is not None:
        grad = torch.where(_inside(x, within), grad, 0)
    dims = (0, 2) if shared else (2,)
    product = grad * (widened(x) - center.unsqueeze(2))
    if shared:
        return grad.sum(dims).unsqueeze(0), product.sum(dims).unsqueeze(0)
    return grad.sum(dims), product.sum(dims)


def cell_grad_input(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    slope: Tensor,
    pivot: Tensor,
    offset: Tensor,
    within: Bounds | None = None,
) -> Tensor:
    moved = (widened(x) - pivot.unsqueeze(2)) * slope.unsqueeze(2) + offset.unsqueeze(2)
    if within is not None:
        moved = torch.where(_inside(x, within), moved, 0)
    return (widened(dy) * scale.unsqueeze(2) + moved).to(x.dtype)

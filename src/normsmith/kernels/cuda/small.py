"""The kernels for statistics alone, where as torch operations every step would be a launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from normsmith.kernels import reference
from normsmith.kernels.cuda import launch

BLOCK = 256


@triton.jit
def _moved(average, value, factor, step, i, there):
    """A running average moved, in the two forms of torch.lerp: exact at both ends."""
    old = tl.load(average + i, mask=there, other=0)
    way = tl.load(value + i, mask=there, other=0) * factor - old
    new = tl.where(step < 0.5, old + step * way, old + way - way * (1 - step))
    tl.store(average + i, new, mask=there)


@triton.jit
def _move_two(first, second, value, other, factor, other_factor, step, size, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _moved(first, value, factor, step, i, i < size)
    _moved(second, other, other_factor, step, i, i < size)


@triton.jit
def _unscale(
    total, product, scale, inverse, inverse_n, inverse_c, d_weight, d_mean, d_var, channels, size, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < size
    one = tl.load(inverse + i // channels * inverse_n + i % channels * inverse_c, mask=there, other=0)
    slope = tl.load(scale + i, mask=there, other=0)
    weight = tl.load(product + i, mask=there, other=0) * one
    tl.store(d_weight + i, weight, mask=there)
    tl.store(d_mean + i, -slope * tl.load(total + i, mask=there, other=0), mask=there)
    tl.store(d_var + i, slope * one * weight * -0.5, mask=there)


def _plain(*tensors: Tensor) -> bool:
    """Whether all are float32, contiguous and of one size."""
    return all(
        t.dtype == torch.float32 and t.is_contiguous() and not t.is_neg() and t.numel() == tensors[0].numel() for t in tensors
    )


def move_average(averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float) -> None:
    if len(averages) != 2 or not _plain(*averages, *values):
        reference.move_average(averages, values, factors, step)
        return
    size = values[0].numel()
    arguments: tuple[Any, ...] = (*averages, *values, *map(float, factors), float(step), size)
    launch.launch(_move_two, -(-size // BLOCK), values[0], *arguments, BLOCK=BLOCK)
    torch.autograd.graph.increment_version(averages)


def unscale(total: Tensor, product: Tensor, scale: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not _plain(total, product, scale) or inverse.dtype != scale.dtype or inverse.dim() != 2 or scale.dim() != 2:
        return reference.unscale(total, product, scale, inverse)
    found = torch.empty((3, *scale.shape), dtype=scale.dtype, device=scale.device)
    size = scale.numel()
    given = (total, product, scale, inverse, *inverse.expand(scale.shape).stride())
    launch.launch(_unscale, -(-size // BLOCK), scale, *given, *found, scale.shape[1], size, BLOCK=BLOCK)
    return found[0], found[1], found[2]

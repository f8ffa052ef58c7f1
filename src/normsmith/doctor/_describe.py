"""The pass over a tensor that feeds moments and histograms: `kernels/cpu/shape.py` where it can work, plain torch elsewhere."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from normsmith.cells import cut
from normsmith.doctor.grid import Grid, places
from normsmith.errors import InputError
from normsmith.kernels import reference
from normsmith.kernels.choose import backend_for, kernels_take

if TYPE_CHECKING:
    from normsmith.kernels.cpu.describe import Pass

# The columns of the facts of a channel.
COUNT, MEAN, SECOND, THIRD, FOURTH, LOW, HIGH, NOT_FINITE = range(8)
NOTHING = (0, 0, 0, 0, 0, math.inf, -math.inf, 0)
CHUNK = 1 << 21  # elements that plain torch widens to float64 at once


def in_kernels(x: Tensor) -> bool:
    """Whether the cpu kernels take x."""
    return kernels_take(x) and backend_for(x) is not reference


class Extremes(NamedTuple):
    """The least and the greatest element of every cell, (N, C) each; NaN or infinite where an element of the cell is."""

    low: Tensor
    high: Tensor


def no_facts(channels: int, device: torch.device | str | None = None) -> Tensor:
    """The facts of channels that nothing is known of."""
    return torch.tensor([NOTHING], dtype=torch.float64, device=device).repeat(channels, 1)


def checked(x: Tensor, channels: int, who: str) -> Tensor:
    """`x` in a type and on a device that statistics can be taken on."""
    if x.dim() < 2 or x.shape[1] != channels or not x.is_floating_point():
        raise InputError(
            f"{who} expects floating-point tensors of shape (N, {channels}, ...): got {x.dtype} of shape {tuple(x.shape)}; make "
            "a stream for each tensor that has channels of its own, and cast whole numbers"
        )
    x = x.detach()
    if x.device.type == "mps":  # it has no float64
        x = x.cpu()
    return reference.widened(x)


def pass_over(x: Tensor, facts: Tensor, tallies: Tensor | None = None, grid: Grid | None = None) -> "Pass | None":
    """What adds x, and all that are laid out alike, to facts and tallies, and finds the extremes of cells; None where kernels cannot."""
    if not in_kernels(x):
        return None
    from normsmith.kernels.cpu.describe import Pass  # noqa: PLC0415  (numba)

    return Pass(x, facts, tallies, None if grid is None else grid.narrowed(x.dtype))


def describe(x: Tensor, facts: Tensor, tallies: Tensor | None = None, grid: Grid | None = None) -> Extremes:
    """Add a checked x to facts, (C, 8), and to tallies, (C, bins), on the grid; the extremes of its cells."""
    in_kernel = pass_over(x, facts, tallies, grid)
    if in_kernel is not None:
        return Extremes(*in_kernel(x))
    cells = cut(x)
    samples, channels, size = cells.shape
    if x.numel() == 0:
        return Extremes(x.new_full((samples, channels), torch.inf), x.new_full((samples, channels), -torch.inf))
    for part in torch.split(cells, max(1, CHUNK // (channels * size))):
        _describe(part.transpose(0, 1).reshape(channels, -1), facts, tallies, grid)
    return Extremes(cells.amin(2), cells.amax(2))


def _describe(x: Tensor, facts: Tensor, tallies: Tensor | None, grid: Grid | None) -> None:
    """The same for x of shape (C, elements), in plain torch."""
    wide, finite = x.double(), x.isfinite()
    count = finite.sum(1)
    found = no_facts(len(x), x.device)
    found[:, COUNT], found[:, NOT_FINITE] = count, x.shape[1] - count
    found[:, LOW] = torch.where(finite, wide, torch.inf).amin(1)
    found[:, HIGH] = torch.where(finite, wide, -torch.inf).amax(1)
    held = count > 0
    share = count.clamp_min(1).unsqueeze(1)
    mean = (torch.where(finite, wide, 0) / share).sum(1)
    mean = torch.where(held, mean.clamp(found[:, LOW], found[:, HIGH]), 0)
    reach = torch.where(held, torch.maximum(found[:, HIGH] - mean, mean - found[:, LOW]), 0)
    unit = torch.where(reach > 0, reach, 1)
    moved = torch.where(finite, (wide - mean.unsqueeze(1)) / unit.unsqueeze(1), 0)
    first, square = moved.mean(1) * x.shape[1] / share.squeeze(1), moved.square()
    two, three, four = square.sum(1), (square * moved).sum(1), square.square().sum(1)
    found[:, MEAN] = mean + first * unit  # the rounding of the mean taken back
    found[:, SECOND] = (two - count * first**2) * unit**2
    found[:, THIRD] = (three - 3 * first * two) * unit**3
    found[:, FOURTH] = (four - 4 * first * three + 6 * first**2 * two) * unit**4
    facts.copy_(union(facts, found))
    if tallies is not None and grid is not None:
        bins = places(x, grid) + torch.arange(len(x), device=x.device).unsqueeze(1) * tallies.shape[1]
        tallies += torch.bincount(bins[finite], minlength=tallies.numel()).view_as(tallies).to(tallies.dtype)


def union(one: Tensor, two: Tensor) -> Tensor:
    """The facts of the union of the elements (Pébay 2008); what counts nothing changes nothing."""
    n, m = one[..., COUNT], two[..., COUNT]
    total = n + m
    a, b = n / total.clamp_min(1), m / total.clamp_min(1)
    step = torch.where((n > 0) & (m > 0), two[..., MEAN] - one[..., MEAN], 0)
    square, crossed = step**2, total * a * b
    merged = torch.empty_like(one)
    merged[..., COUNT] = total
    larger = n >= m
    merged[..., MEAN] = torch.where(larger, one[..., MEAN] + step * b, two[..., MEAN] - step * a)
    merged[..., SECOND] = one[..., SECOND] + two[..., SECOND] + square * crossed
    merged[..., THIRD] = (
        (one[..., THIRD] + two[..., THIRD])
        + square * step * crossed * (a - b)
        + 3 * step * (a * two[..., SECOND] - b * one[..., SECOND])
    )
    merged[..., FOURTH] = (
        (one[..., FOURTH] + two[..., FOURTH])
        + square.square() * crossed * (a**2 - a * b + b**2)
        + 6 * square * (a**2 * two[..., SECOND] + b**2 * one[..., SECOND])
        + 4 * step * (a * two[..., THIRD] - b * one[..., THIRD])
    )
    merged[..., LOW] = torch.minimum(one[..., LOW], two[..., LOW])
    merged[..., HIGH] = torch.maximum(one[..., HIGH], two[..., HIGH])
    merged[..., NOT_FINITE] = one[..., NOT_FINITE] + two[..., NOT_FINITE]
    return merged

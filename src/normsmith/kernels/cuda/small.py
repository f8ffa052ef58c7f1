"""From statistics to the kernels for them; what these cannot take is done in torch operations, as everywhere else."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from normsmith import arithmetic
from normsmith.arithmetic import Arithmetic, Dims, Line, Pair, Pulled, Unstandardized
from normsmith.derivatives import Known, Weighed
from normsmith.kernels import Bounds, reference
from normsmith.kernels.cuda import launch, statistics
from normsmith.kernels.cuda.geometry import power
from normsmith.moments import Pooled

BLOCK = 256  # numbers a program holds at once
AT_ONCE = 3  # sources of a weighted sum, or lines, in one launch
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
Shape = tuple[int, ...]


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32, contiguous, and of no interest to autograd."""
    return all(t.dtype == torch.float32 and t.is_contiguous() and _readable(t) for t in tensors if t is not None)


def _readable(t: Tensor) -> bool:
    return not t.is_neg() and not (t.requires_grad and torch.is_grad_enabled())


def _together(tensors: Sequence[Tensor]) -> Shape:
    """The shape that they broadcast to."""
    return tuple(torch.broadcast_shapes(*(t.shape for t in tensors)))  # type: ignore[no-untyped-call]


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _steps(t: Tensor, shape: Shape) -> tuple[int, int]:
    """Between samples and channels of a statistic that is broadcast to this shape."""
    first, second = t.expand(shape).stride()
    return first, second


def _tiles(results: int, members: int, inner: int) -> tuple[int, int, int]:
    """How many programs sum up so many results, and how many results and members of each a program holds."""
    width = min(power(members), BLOCK if inner == 1 else 32)
    height = min(power(results), BLOCK // width)
    return -(-results // height), height, width


def _summed(cells: Shape, shape: Shape) -> Shape | None:
    """Results, members and inner of what sums cells of the first shape up to the second; None for what is none of the usual sums."""
    rows, columns = cells
    kinds: dict[Shape, Shape] = {(rows, 1): (rows, columns, 1), (1, columns): (columns, rows, columns)}
    kinds[columns,] = kinds[1, columns]
    kinds[rows, columns] = rows * columns, 1, 1
    return kinds.get(tuple(shape))


def _along(shape: Shape, dim: int) -> Shape:
    """Results, members and inner of a sum along a dimension."""
    inner = math.prod(shape[dim + 1 :])
    return math.prod(shape[:dim]) * inner, shape[dim], inner


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled:
    """Those of `launch`, to be computed with by what is here."""
    return replace(launch.cell_moments(x, within, shared=shared), by=cast(Arithmetic, sys.modules[__name__]))


def pool(mean: Tensor, var: Tensor, dims: Dims, *, spread: bool = False) -> Pair:
    if isinstance(dims, tuple) or not _plain(mean, var) or mean.shape != var.shape or mean.numel() == 0:
        return arithmetic.pool(mean, var, dims, spread=spread)
    dim = dims % mean.dim()
    results, members, inner = _along(mean.shape, dim)
    shape = mean.shape if spread else (*mean.shape[:dim], 1, *mean.shape[dim + 1 :])
    found = torch.empty((2, *shape), dtype=mean.dtype, device=mean.device)
    programs, height, width = _tiles(results, members, inner)
    given = (mean, var, *found, results, members, inner)
    launch.launch(statistics.pool, programs, mean, *given, SPREAD=spread, BR=height, BM=width)
    return found[0], found[1]


def share(d_mean: Tensor, d_var: Tensor, dim: int) -> Pair:
    if not _plain(d_mean, d_var) or d_mean.shape != d_var.shape:
        return arithmetic.share(d_mean, d_var, dim)
    results, members, inner = _along(d_mean.shape, dim)
    found = torch.empty((2, *d_mean.shape), dtype=d_mean.dtype, device=d_mean.device)
    programs, height, width = _tiles(results, members, inner)
    launch.launch(statistics.share, programs, d_mean, d_mean, d_var, *found, results, members, inner, BR=height, BM=width)
    return found[0], found[1]


def weighted_sum(sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor) -> Pair:
    every = [t for m in sources for t in (m.mean, m.var)]
    shape = _together(every)
    if len(sources) > AT_ONCE or len(shape) != 2 or not _plain(*every, mean_weights, var_weights):
        return arithmetic.weighted_sum(sources, mean_weights, var_weights)
    found = torch.empty((2, *shape), dtype=torch.float32, device=every[0].device)
    given: list[Any] = [item for m in sources for item in (m.mean, m.var, *_steps(m.mean, shape))]
    given += [None, None, 0, 0] * (AT_ONCE - len(sources))
    size = math.prod(shape)
    rest = (mean_weights, var_weights, *found, shape[1], size)
    launch.launch(statistics.weighted_sum, _blocks(size), every[0], *given, *rest, BLOCK=BLOCK)
    return found[0], found[1]


def weigh(d_mean: Tensor, d_var: Tensor, sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor) -> Weighed:
    sums = [_summed(tuple(d_mean.shape), m.mean.shape) if m.mean.shape == m.var.shape else None for m in sources]
    every = (d_mean, d_var, mean_weights, var_weights, *(t for m in sources for t in (m.mean, m.var)))
    known = [one for one in sums if one is not None]
    if len(known) < len(sums) or d_var.shape != d_mean.shape or not _plain(*every):
        return arithmetic.weigh(d_mean, d_var, sources, mean_weights, var_weights)
    tiles = [_tiles(*one) for one in known]
    programs, count = max(one for one, _, _ in tiles), len(sources)
    parts = torch.empty((2, count, programs), dtype=torch.float32, device=d_mean.device)
    found = []
    for k, (m, sizes, (_, height, width)) in enumerate(zip(sources, known, tiles, strict=True)):
        own = torch.empty((2, *m.mean.shape), dtype=torch.float32, device=d_mean.device)
        given = (d_mean, d_var, m.mean, m.var, mean_weights, var_weights, k, *own, parts, count)
        launch.launch(statistics.weigh_source, programs, d_mean, *given, *sizes, BR=height, BM=width)
        found.append((own[0], own[1]))
    weights = torch.empty((2, count), dtype=torch.float32, device=d_mean.device)
    launch.launch(statistics.totals, 2 * count, parts, parts, weights, programs, BLOCK=min(power(programs), BLOCK))
    return weights[0], weights[1], found


def standardize(moments: Known, weight: Tensor | None, eps: float, *, centered: bool) -> Pair:
    mean, var = moments.mean, moments.var
    fits = weight is None or (weight.dtype in _FLOATS and weight.dim() in {1, 2} and _readable(weight))
    if not fits or var.dim() != 2 or mean.shape != var.shape or not _plain(mean, var):
        return arithmetic.standardize(moments, weight, eps, centered=centered)
    shape = var.shape if weight is None else _together((var, weight))
    inverse = torch.empty_like(var)
    scale = inverse if weight is None else torch.empty(shape, dtype=torch.float32, device=var.device)
    steps = (0, 0) if weight is None else _steps(weight, shape)
    given = (None if centered else mean, var, *_steps(var, shape), weight, *steps, inverse, scale, float(eps), shape[1])
    size = math.prod(shape)
    launch.launch(statistics.standardize, _blocks(size), var, *given, size, BLOCK=BLOCK)
    return inverse, scale


def unstandardize(
    total: Tensor,
    product: Tensor,
    factors: Pair,
    moments: Known,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    centered: bool,
) -> Unstandardized:
    (inverse, scale), (mean, var) = factors, (moments.mean, moments.var)
    owners = [t for t in (weight, bias) if t is not None]
    cells = tuple(total.shape)
    sums = [None if len(cells) != 2 else _summed(cells, t.shape) for t in (var, *owners)]
    plain = _plain(total, product, inverse, mean, var) and scale.dtype == torch.float32 and scale.shape == total.shape
    alike = mean.shape == var.shape == inverse.shape and len({t.shape for t in owners}) < 2 and total.shape == product.shape
    if not plain or not alike or None in sums or not all(t.dtype in _FLOATS for t in owners):
        return arithmetic.unstandardize(total, product, factors, moments, weight, bias, centered=centered)
    own, other = (one or (0, 1, 1) for one in (sums[0], sums[-1] if owners else None))
    d_mean, d_var = torch.empty_like(mean), torch.empty_like(var)
    d_weight, d_bias = (
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in (weight, bias)
    )
    programs, height, width = _tiles(*own)
    others, other_height, other_width = _tiles(*other) if owners else (0, 1, 1)
    sizes: dict[str, Any] = {"BR": height, "BM": width, "OTHER_BR": other_height, "OTHER_BM": other_width}
    given = (total, product, scale, *scale.stride(), inverse, *_steps(inverse, cells), None if centered else mean)
    found = (d_mean, d_var, d_weight, d_bias, cells[1], programs, *own, *other)
    launch.launch(statistics.unstandardize, programs + others, total, *given, *found, **sizes)
    return Unstandardized(d_mean, d_var, d_weight, d_bias)


def lines(pulled: Sequence[Pulled]) -> Line:
    every = [t for one in pulled for t in one[:3]]
    alike = all(one[0].shape == one[1].shape == one[2].shape for one in pulled)
    counts = [one[3] for one in pulled if isinstance(one[3], int)]
    shape = _together(every)
    if len(pulled) > AT_ONCE or not alike or len(counts) < len(pulled) or len(shape) != 2 or not _plain(*every):
        return arithmetic.lines(pulled)
    given: list[Any] = []
    for (d_mean, d_var, mean, _), count in zip(pulled, counts, strict=True):
        given += [d_mean, d_var, mean, *_steps(mean, shape), 1 / max(count, 1)]
    given += [None, None, None, 0, 0, 0.0] * (AT_ONCE - len(pulled))
    slope, offset = torch.empty((2, *shape), dtype=torch.float32, device=every[0].device)
    size = math.prod(shape)
    launch.launch(statistics.lines, _blocks(size), slope, *given, slope, offset, shape[1], size, BLOCK=BLOCK)
    return slope, pulled[0][2].detach(), offset


def move_average(averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float) -> None:
    alike = len({t.numel() for t in (*averages, *values)}) == 1
    if len(averages) != 2 or not alike or not _plain(*averages, *values):
        reference.move_average(averages, values, factors, step)
        return
    size = values[0].numel()
    arguments: tuple[Any, ...] = (*averages, *values, *map(float, factors), float(step), size)
    launch.launch(statistics.move_two, _blocks(size), values[0], *arguments, BLOCK=BLOCK)
    torch.autograd.graph.increment_version(averages)

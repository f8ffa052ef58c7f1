"""From cut tensors to loops: finds the layout, allocates, hands over addresses, merges."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normsmith import derivatives
from normsmith.cells import layout
from normsmith.derivatives import Weighed
from normsmith.kernels import Bend, Bent, Bounds, Sums, reference
from normsmith.kernels.cpu import blend, columns, merge, parallel, rows, threads
from normsmith.kernels.cpu.bend import KINDS
from normsmith.moments import Moments, Pooled

RUN = 65536  # elements of a run of positions in the columns layout, between 256 and 4096 positions: see `runs_of`
ZEROS = {torch.float32: np.float32(0), torch.float64: np.float64(0)}


def _laid_out(x: Tensor) -> tuple[Tensor, bool]:
    """`x` in a layout the loops know, copied only if it is in neither; and whether that is rows."""
    kind = layout(x)
    return (x, kind == "rows") if kind != "neither" else (x.contiguous(), True)


def like(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` in the layout of `x`: a gradient may come expanded from a sum or in another memory format."""
    if dy.dtype == x.dtype and layout(dy) == layout(x) and not dy.is_neg() and dy.data_ptr():
        return dy
    return torch.empty_like(x).copy_(dy)


def _single_sample(x: Tensor) -> Tensor:
    """A dense columns tensor as one sample of N*S positions, for statistics that all samples share."""
    samples, channels, positions = x.shape
    if samples == 1 or x.stride(0) != positions * x.stride(2):
        return x
    return x.as_strided((1, channels, samples * positions), (x.stride(0), 1, x.stride(2)))


def runs_of(x: Tensor) -> int:
    """Into how many runs each sample's positions are cut.

    By the shape alone, so that results repeat to the bit on any number of cores; long enough that their sums are small beside x, and
    short enough that the one pivot of a run is near its mean.
    """
    return max(1, math.ceil(x.shape[2] / min(max(RUN // max(x.shape[1], 1), 256), 4096)))


def _addresses(tensors: list[Tensor]) -> list[int]:
    return [t.data_ptr() for t in tensors]


def _layers(block: Tensor) -> range:
    """The addresses of the contiguous block[0], block[1], ..., without making tensors of them."""
    start, size = block.data_ptr(), block.stride(0) * block.element_size()
    return range(start, start + size * block.shape[0], size)


def place(x: Tensor, by_rows: bool) -> tuple[int, int, int]:
    strides = x.stride()
    return x.data_ptr(), strides[0], strides[1 if by_rows else 2]


@cache
def _loops(name: str, by_rows: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """The loop `name` on one core, and on several."""
    return (
        getattr(rows if by_rows else columns, name),
        getattr(parallel, f"rows_{name}" if by_rows else f"columns_{name}"),
    )


def _run(name: str, by_rows: bool, x: Tensor, *arguments: Any) -> None:
    """Call the loop `name` over all cells (rows) or runs (columns), on as many cores as the size deserves."""
    alone, together = _loops(name, by_rows)
    cells = x.shape[0] * (x.shape[1] if by_rows else runs_of(x))
    cores = threads.available(x.numel())
    if cores == 0:
        alone(ZEROS[x.dtype], *arguments, 0, cells)
        return
    with threads.turn():
        together(ZEROS[x.dtype], *arguments, cells, cores)


def _sizes(x: Tensor, by_rows: bool) -> tuple[int, ...]:
    return (x.shape[1], x.shape[2]) if by_rows else (x.shape[1], x.shape[2], runs_of(x))


def _statistics(x: Tensor, *values: Tensor) -> tuple[list[Tensor], int]:
    """Values of shape (N, C) or (1, C) as contiguous tensors of one of these shapes, and the step between samples."""
    samples, channels, _ = x.shape
    rows_of_all = 1
    for v in values:
        if v.shape[0] != 1:
            rows_of_all = samples
    shape, dtype = (rows_of_all, channels), x.dtype
    ready = [
        v
        if v.shape == shape and v.dtype == dtype and v.is_contiguous() and not v.is_neg()
        else v.to(dtype).expand(shape).resolve_neg().contiguous()
        for v in values
    ]
    return ready, 0 if rows_of_all == 1 else channels


def _partial(number: int, x: Tensor, by_rows: bool) -> tuple[Tensor, range]:
    """Memory for so many results of every cell (rows), or of every channel of every run (columns), and where each begins."""
    samples, channels, _ = x.shape
    block = torch.empty((number, samples if by_rows else samples * runs_of(x), channels), dtype=torch.float64, device=x.device)
    return block, _layers(block)


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled:
    x, by_rows = _laid_out(x)
    samples, channels, positions = x.shape
    if within is None:
        low, high, step = None, None, 0
    else:
        limits, step = _statistics(x, *within)
        low, high = _addresses(limits)
    if shared and not by_rows and step == 0:
        x = _single_sample(x)
    partial, places = _partial(3, x, by_rows)
    _run("moments", by_rows, x, *place(x, by_rows), *_sizes(x, by_rows), low, high, step, *places)
    outer = 1 if shared else samples
    if partial.shape[1] == outer:
        found = partial.to(x.dtype)
    else:
        found = torch.empty((3, outer, channels), dtype=x.dtype, device=x.device)
        merge.merge_moments(ZEROS[x.dtype], outer, partial.shape[1] // outer, channels, *places, *_layers(found))
    count, mean, var = found.unbind()
    return Pooled(mean, var, positions * (samples if shared else 1) if within is None else count)


def cell_affine(x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, bend: Bend | None = None) -> Tensor:
    x, by_rows = _laid_out(x)
    statistics, step = _statistics(x, center, scale, bias, *(() if bend is None else (bend.level,)))
    found = _addresses(statistics)
    activation = (None, None) if bend is None else (KINDS[bend.kind], found[3])
    y = torch.empty_like(x)
    where = (*place(x, by_rows), *place(y, by_rows), *_sizes(x, by_rows))
    _run("affine", by_rows, x, *where, *found[:3], *activation, step)
    return y


def cell_grad_sums(
    dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False, bent: Bent | None = None
) -> Sums:
    x, by_rows = _laid_out(x)
    dy = like(dy, x)
    samples, channels, _ = x.shape
    more = (bent.scale, bent.bias, bent.bend.level) if bent is not None else within or ()
    statistics, step = _statistics(x, center, *more)
    if shared and not by_rows and step == 0 and _single_sample(dy).shape == _single_sample(x).shape:
        dy, x = _single_sample(dy), _single_sample(x)
    raised = bent is not None and bent.bend.kind == "floor"
    partial, places = _partial(3 if raised else 2, x, by_rows)
    where = (*place(dy, by_rows), *place(x, by_rows), *_sizes(x, by_rows))
    found = _addresses(statistics)
    bounds = (None, None) if bent is not None or within is None else found[1:]
    activation = (None,) * 4 if bent is None else (*found[1:3], KINDS[bent.bend.kind], found[3])
    _run("grad_sums", by_rows, x, *where, found[0], *bounds, *activation, step, *places, *(() if raised else (None,)))
    outer = 1 if shared else samples
    if partial.shape[1] == outer:
        return Sums(*partial.to(x.dtype).unbind())
    sums = torch.empty((2, outer, channels), dtype=x.dtype, device=x.device)
    merge.merge_sums(ZEROS[x.dtype], outer, partial.shape[1] // outer, channels, *places[:2], *_layers(sums))
    total, product = sums.unbind()
    return Sums(total, product, partial[2].view(outer, -1, channels).sum(1).to(x.dtype) if raised else None)


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
    x, by_rows = _laid_out(x)
    dy = like(dy, x)
    more = () if bent is None else (bent.center, bent.bias, bent.bend.level)
    statistics, step = _statistics(x, scale, slope, pivot, offset, *more, *(within or ()))
    found = _addresses(statistics)
    bounds = (None, None) if within is None else found[-2:]
    activation = (None,) * 4 if bent is None else (*found[4:6], KINDS[bent.bend.kind], found[6])
    dx = torch.empty_like(x)
    where = (*place(dy, by_rows), *place(x, by_rows), *place(dx, by_rows), *_sizes(x, by_rows))
    _run("grad_input", by_rows, x, *where, *found[:4], *bounds, *activation, step)
    return dx


def weigh(d_mean: Tensor, d_var: Tensor, sources: Sequence[Moments], mean_weights: Tensor, var_weights: Tensor) -> Weighed:
    """As `derivatives.weigh`, which does what the loops cannot."""
    if not _fit(d_mean, d_var, sources, mean_weights, var_weights):
        return derivatives.weigh(d_mean, d_var, sources, mean_weights, var_weights)
    zero, size = ZEROS[d_mean.dtype], d_mean.element_size()
    d_weights = torch.empty((2, len(sources)), dtype=d_mean.dtype, device=d_mean.device)
    p, q, dot_mean, dot_var = (t.data_ptr() for t in (mean_weights, var_weights, *d_weights))
    found = []
    for k, m in enumerate(sources):
        own = torch.empty((2, *m.mean.shape), dtype=d_mean.dtype, device=d_mean.device)
        own_mean, own_var = own.unbind()
        values = [t.data_ptr() for t in (d_mean, d_var, m.mean, m.var)]
        weights, dots = (p + k * size, q + k * size), (dot_mean + k * size, dot_var + k * size)
        owns = (own_mean.data_ptr(), own_var.data_ptr())
        blend.weigh_source(zero, *d_mean.shape, *m.mean.shape, *values, *weights, *owns, *dots)
        found.append((own_mean, own_var))
    return d_weights[0], d_weights[1], found


def move_average(averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float) -> None:
    if len(averages) == 2:
        (one, two), (value, other) = averages, values
        alike = one.dtype == two.dtype == value.dtype == other.dtype and one.numel() == two.numel()
        dense = one.is_contiguous() and two.is_contiguous() and value.is_contiguous() and other.is_contiguous()
        if alike and dense and value.shape == other.shape:
            rows, where = value.numel() // max(one.numel(), 1), (value.data_ptr(), other.data_ptr())
            given = (one.data_ptr(), where[0], factors[0], two.data_ptr(), where[1], factors[1], step)
            blend.move(ZEROS[value.dtype], rows, one.numel(), *given)
            return
    reference.move_average(averages, values, factors, step)


def _fit(d_mean: Tensor, d_var: Tensor, sources: Sequence[Moments], *weights: Tensor) -> bool:
    """Whether all are contiguous and of one type, statistics of cells, of samples or of channels."""
    if d_mean.dim() != 2 or d_var.shape != d_mean.shape or d_mean.dtype not in ZEROS:
        return False
    samples, channels = d_mean.shape
    shapes = ((samples, channels), (samples, 1), (1, channels))
    if not all(m.mean.shape in shapes and m.var.shape == m.mean.shape for m in sources):
        return False
    every = (d_mean, d_var, *weights, *(t for m in sources for t in (m.mean, m.var)))
    return all(t.dtype == d_mean.dtype and t.is_contiguous() and t.is_cpu and not t.is_neg() for t in every)

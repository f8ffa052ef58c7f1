"""From cut tensors to kernels: finds the layout, allocates, launches, merges."""

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from normsmith.cells import layout
from normsmith.kernels import Bend, Bent, Bounds, Kind, Sums
from normsmith.kernels.cuda import apply, reduce
from normsmith.kernels.cuda.geometry import MERGED, Splits, Tiles, fold_cells, fold_samples, power
from normsmith.kernels.reference import statistics_type
from normsmith.moments import Pooled

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}  # of statistics
Steps = tuple[Any, ...]  # tensors, each with its strides


def launch(kernel: Any, programs: int, x: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """One kernel, on the device of x and its current stream."""
    here: AbstractContextManager[Any] = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with here:
        kernel[(programs,)](*arguments, num_warps=warps, **constants)


def laid_out(x: Tensor) -> Tensor:
    """`x` in a layout of the kernels, copied only if it is in neither."""
    return x if layout(x) != "neither" else x.contiguous()


def like(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` as it is where it lies like `x`, or is one number expanded; in the layout of `x` else."""
    readable = dy.data_ptr() and not dy.is_neg()
    return dy if readable and (layout(dy) == layout(x) or 0 in dy.stride()) else torch.empty_like(x).copy_(dy)


def _per_cell(values: tuple[Tensor | None, ...], cells: torch.Size) -> bool:
    """Whether each of these has a number of its own for every one of the cells, one after the other."""
    return all(v is None or (v.shape == cells and v.is_contiguous()) for v in values)


def _shared(values: tuple[Tensor | None, ...]) -> bool:
    """Whether all samples share each of these."""
    return all(v is None or v.shape[0] == 1 for v in values)


def _folded(values: tuple[Tensor | None, ...], shared: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with samples folded into positions or channels, if these statistics allow it."""
    if shared and _shared(values):
        return fold_samples(*tensors)
    return fold_cells(*tensors) if not shared and _per_cell(values, tensors[0].shape[:2]) else tensors


def _statistics(*values: Tensor | None) -> Steps:
    """Every value with its steps between samples and between channels, 0 where they share it."""
    found: list[Any] = []
    for value in values:
        if value is None:
            found += [None, 0, 0]
            continue
        ready = value.resolve_neg()
        found += [ready, *(step if size > 1 else 0 for step, size in zip(ready.stride(), ready.shape, strict=True))]
    return tuple(found)


def constants(tiles: Tiles, x: Tensor) -> dict[str, Any]:
    """How large the tiles of a kernel are, and what type it reckons in."""
    return {"warps": tiles.warps, "BC": tiles.height, "BS": tiles.width, "TYPE": TYPES[statistics_type(x)]}


def _reduced(
    kernel: Any,
    merge: Any,
    x: Tensor,
    shared: bool,
    arguments: Steps,
    shape: tuple[int, int, int],
    choices: Mapping[str, Any],
    **more: Any,
) -> Tensor:
    """What a kernel of `reduce` finds in the folded `x`, merged if several programs found it: a tensor of this shape."""
    tiles = Tiles.of(x)
    splits = Splits.of(tiles, shared)
    merged = torch.empty(shape, dtype=statistics_type(x), device=x.device)
    parts = parts_of(merged, tiles.channels, splits)
    launch(
        kernel,
        splits.outer * splits.number * tiles.blocks,
        x,
        *arguments,
        *work_of(parts, tiles, splits),
        **constants(tiles, x),
        **choices,
    )
    return merge_parts(merge, merged, parts, splits, **more)


def parts_of(merged: Tensor, columns: int, splits: Splits) -> Tensor:
    """Where several programs put what they find of the same results, or else these results."""
    if splits.number == 1:
        return merged
    return torch.empty((merged.shape[0], splits.outer * splits.number, columns), dtype=torch.float64, device=merged.device)


def work_of(parts: Tensor | None, tiles: Tiles, splits: Splits) -> tuple[Any, ...]:
    """What a kernel of `reduce` is told of its results and of its share of the work."""
    sizes = (tiles.channels, tiles.size, tiles.along)
    return (parts, 0 if parts is None else parts[0].numel(), *sizes, splits.run, splits.span, splits.number, tiles.blocks)


def merge_parts(merge: Any, merged: Tensor, parts: Tensor, splits: Splits, **more: Any) -> Tensor:
    """The results, merged from the parts if several programs found them."""
    if parts is not merged:
        columns = parts.shape[2]
        height = min(power(splits.number), MERGED)
        width = min(power(columns), max(MERGED // height, 4))
        blocks = -(-columns // width)
        sizes = (parts[0].numel(), merged, merged[0].numel(), columns, splits.number, blocks)
        launch(merge, splits.outer * blocks, merged, parts, *sizes, BC=width, BK=height, **more)
    return merged


def cell_moments(x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled:
    x = laid_out(x)
    samples, channels, size = x.shape
    low, high = within or (None, None)
    (view,) = _folded((low, high), shared, x)
    arguments = (view, *view.stride(), *_statistics(low, high))
    shape = (3, 1 if shared else samples, channels)
    found = _reduced(reduce.moments, reduce.merge_moments, view, shared, arguments, shape, {})
    count: int | Tensor = size * (samples if shared else 1) if within is None else found[2]
    return Pooled(found[0], found[1], count)


def cell_grad_sums(
    dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False, bent: Bent | None = None
) -> Sums:
    x = laid_out(x)
    dy = like(dy, x)
    low, high = within if within is not None and bent is None else (None, None)
    scale, bias, level, kind = (
        (None, None, None, None) if bent is None else (bent.scale, bent.bias, bent.bend.level, bent.bend.kind)
    )
    values = (center, low, high, scale, bias, level)
    grad, view = _folded(values, shared, dy, x)
    arguments = (grad, *grad.stride(), view, *view.stride(), *_statistics(*values))
    layers = 3 if kind == "floor" else 2
    shape = (layers, 1 if shared else x.shape[0], x.shape[1])
    sums = _reduced(reduce.grad_sums, reduce.merge_sums, view, shared, arguments, shape, {"KIND": kind}, LAYERS=layers)
    return Sums(*sums.unbind())


def _written(kernel: Any, y: Tensor, values: tuple[Tensor | None, ...], kind: Kind | None, *inputs: Tensor) -> Tensor:
    """`y`, laid out like the last of the inputs, written by a kernel of `apply`."""
    views = _folded(values, _shared(values), *inputs, y)
    x = views[-2]
    tiles = Tiles.of(x)
    places = [item for view in views for item in (view, *view.stride())]
    sizes = (tiles.channels, tiles.size, tiles.along, tiles.blocks)
    programs = tiles.samples * tiles.blocks * tiles.along
    launch(kernel, programs, x, *places, *_statistics(*values), *sizes, **constants(tiles, x), KIND=kind)
    return y


def cell_affine(x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, bend: Bend | None = None) -> Tensor:
    x = laid_out(x)
    kind, level = (None, None) if bend is None else bend
    return _written(apply.affine, torch.empty_like(x), (center, scale, bias, level), kind, x)


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
    x = laid_out(x)
    kind = None if bent is None else bent.bend.kind
    more = (None, None, None) if bent is None else (bent.center, bent.bias, bent.bend.level)
    values = (scale, slope, pivot, offset, *(within or (None, None)), *more)
    return _written(apply.grad_input, torch.empty_like(x), values, kind, like(dy, x), x)

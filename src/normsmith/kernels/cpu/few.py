"""Small tensors in one call each way: from moments that wait to the loops of `few_loops.py`."""

from array import array
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from normsmith.arithmetic import AtOnce, Pair
from normsmith.cells import layout
from normsmith.kernels import Bend, Kind
from normsmith.kernels.cpu import few_loops, whole
from normsmith.kernels.cpu.bend import KINDS
from normsmith.kernels.cpu.few_loops import (
    D_MEAN_WEIGHT,
    D_VAR_WEIGHT,
    D_WEIGHT,
    FIRST,
    MEAN,
    RECORD,
    ROWS,
    SCRATCH,
    SIZES,
    SOURCES,
    X,
)
from normsmith.kernels.cpu.launch import ZEROS, cell_moments, like, place, runs_of
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Blend, ByChannels, Count, Moments, Pooled

ELEMENTS = 65536  # above, several cores gain more than separate operations cost
CELLS = 4096  # above, these would be more than what is done with x


def cells_later(x: Tensor, *, batch: bool = False) -> Pooled | None:
    """The moments of cells, when somebody asks for them; None if the batch's would be asked for first, and it is better not to wait."""
    samples, channels, positions = x.shape
    cells, kind = samples * channels, layout(x)
    fits = cells <= CELLS and cells * positions <= ELEMENTS and (kind == "rows" or runs_of(x) == 1)
    if fits and kind != "neither":
        return Untaken(x, 1, lambda: cell_moments(x), None, few=standardize)
    return None if batch else whole.cells_later(x)


def standardize(
    moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool, bend: Bend | None
) -> AtOnce | None:
    """The data that these moments are of, standardized and bent, if they are made of sets that nobody has asked for."""
    sources, blend = _sources(moments), moments if isinstance(moments, Blend) else None
    affine = (weight, bias, None if bend is None else bend.level)
    if sources is None:
        return None
    x = sources[0].moments.x
    if not all(t is None or _is_readable(t, x) for t in affine):
        return None
    if blend is not None and not all(t.dtype == x.dtype and t.is_contiguous() and t.shape == (len(sources),) for t in _weights(blend)):
        return None
    return _Few(x, sources, blend, affine, (eps, centered), None if bend is None else bend.kind)


class _Source(NamedTuple):
    """Moments of sets, the channels that they serve, and the row of what is kept where they are."""

    moments: Untaken
    begin: int
    end: int
    row: int


def _sources(moments: Moments) -> list[_Source] | None:
    """What moments are made of; None for anything but sets of one tensor that nobody has asked for."""
    parts: list[tuple[Moments, int, int | None]] = []
    if isinstance(moments, ByChannels):
        start = 0
        for source, size in moments.parts:
            parts.append((source, start, start + size))
            start += size
    else:
        parts += [(source, 0, None) for source in (moments.blended if isinstance(moments, Blend) else (moments,))]
    found: list[_Source] = []
    row = ROWS
    for source, begin, end in parts:
        if not isinstance(source, Untaken) or not source.waits or (found and source.x is not found[0].moments.x):
            return None
        single = source.height * source.members == 1
        found.append(_Source(source, begin, source.x.shape[1] if end is None else end, MEAN if single else row))
        row += 0 if single else 2
    return found


def _is_readable(t: Tensor, x: Tensor) -> bool:
    """Whether a weight, bias or level has a number for each channel, or cell, in a type that can be read."""
    sizes = t.shape[-1] == x.shape[1] and (t.dim() == 1 or (t.dim() == 2 and t.shape[0] in {1, x.shape[0]}))
    return sizes and t.is_contiguous() and t.is_floating_point() and not t.is_neg() and t.device == x.device


def _weights(blend: Blend | None) -> tuple[Tensor, ...]:
    return () if blend is None else (blend.mean_weights, blend.var_weights)


def _values(kept: Tensor, row: int, shape: tuple[int, int], count: Count) -> Moments:
    """Moments of sets from what is kept."""
    samples, channels = shape
    return Moments(kept[row, :samples, :channels], kept[row + 1, :samples, :channels], count)


class _Few:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor

    def __init__(
        self,
        x: Tensor,
        sources: list[_Source],
        blend: Blend | None,
        affine: tuple[Tensor | None, ...],
        options: tuple[float, ...],
        kind: Kind | None,
    ) -> None:
        self.by_rows, self.weight, self.bias, self.level = layout(x) == "rows", *affine
        self.blend, self.kind = blend, None if kind is None else KINDS[kind]
        self.raised = kind == "floor"
        samples, channels, _ = x.shape
        rows = ROWS + 2 * len(sources)
        self.kept = torch.empty((rows, samples, channels), dtype=x.dtype, device=x.device)
        self.y = y = torch.empty_like(x)
        read = [t if t is None or t.dtype == x.dtype else t.to(x.dtype) for t in affine]  # until the end of this
        room = torch.empty(3 * samples * channels, dtype=torch.float64, device=x.device)
        weights = [t.data_ptr() for t in _weights(blend)]
        self.given = given = array("d", (*place(x, self.by_rows), *place(y, self.by_rows), 0, 0, 0, *x.shape))
        given.extend((self.kept.data_ptr(), room.data_ptr()))
        for t in read:
            given.extend((0, 0) if t is None else (t.data_ptr(), channels if t.numel() > channels else 0))
        given.extend((*options, 0, 0, 0, len(sources)))
        for k, (m, begin, end, row) in enumerate(sources):
            found = [address + k * x.element_size() for address in weights] or (0, 0)
            given.extend((m.height, m.members, begin, end, *found, row, 0, 0))
        loop = few_loops.rows_forward if self.by_rows else few_loops.columns_forward
        loop(ZEROS[x.dtype], self.kind, given.buffer_info()[0])
        for m, _, _, row in sources:
            m.cells.settle(partial(_values, self.kept, MEAN, (samples, channels), m.cells.count))
            m.settle(partial(_values, self.kept, row, m.shape, m.count))

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, *tuple[Pair, ...]]:
        """The gradients of x, weight, bias, level and what the moments are blended with."""
        x = whole._laid_out(x, self.by_rows)
        dy, d_x = like(dy, x), torch.empty_like(x)
        given, by_rows, item = array("d", self.given), self.by_rows, x.element_size()
        room = torch.empty(5 * x.shape[0] * x.shape[1], dtype=torch.float64, device=x.device)
        owners = (self.weight, self.bias, self.level if self.raised else None)
        grads = [None if t is None else torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in owners]
        blended = [torch.empty_like(t) for t in _weights(self.blend)]
        given[X:SIZES] = array("d", (*place(x, by_rows), *place(d_x, by_rows), *place(dy, by_rows)))
        given[SCRATCH] = room.data_ptr()
        given[D_WEIGHT:SOURCES] = array("d", [0 if t is None else t.data_ptr() for t in grads])
        for at, t in zip((D_MEAN_WEIGHT, D_VAR_WEIGHT), blended, strict=False):
            for k in range(t.numel()):
                given[FIRST + k * RECORD + at] = t.data_ptr() + k * item
        loop = few_loops.rows_backward if by_rows else few_loops.columns_backward
        below = room.data_ptr() + 16 * x.shape[0] * x.shape[1] if self.raised else None
        loop(ZEROS[x.dtype], self.kind, below, given.buffer_info()[0])
        d_weight, d_bias, d_level = (None if t is None else in_type_of(t, d) for t, d in zip(owners, grads, strict=True))
        more = zip(_weights(self.blend), blended, strict=True)
        return d_x, d_weight, d_bias, *more, *([] if d_level is None else [(self.level, d_level)])

"""Small tensors in one call each way: from moments that wait to the loops of `few_loops.py`."""

from array import array
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from normsmith.arithmetic import AtOnce, Pair, Towards
from normsmith.cells import layout
from normsmith.combined import Blend, ByChannels
from normsmith.kernels import Bend, Kind
from normsmith.kernels.cpu import few_loops, whole
from normsmith.kernels.cpu.bend import KINDS
from normsmith.kernels.cpu.launch import ZEROS, cell_moments, like, place, runs_of
from normsmith.kernels.cpu.whole import laid_out
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Count, Moments, Pooled

# Where these numbers go, as numbers of Python's.
SIZES, SCRATCH, D_WEIGHT, SOFTMAX, STAGE, FIRST = map(
    int, (few_loops.SIZES, few_loops.SCRATCH, few_loops.D_WEIGHT, few_loops.SOFTMAX, few_loops.STAGE, few_loops.FIRST)
)
MEAN, ROWS, D_WEIGHTS, RECORD = map(int, (few_loops.MEAN, few_loops.ROWS, few_loops.D_WEIGHTS, few_loops.RECORD))
ELEMENTS = 65536  # above, several cores gain more than separate operations cost
MANY = 4  # positions: below, what is kept of the cells would be several times x
CELLS = 4096  # above, these would be more than what is done with x


def cells_later(x: Tensor, *, batch: bool = False) -> Pooled | None:
    """The moments of cells, when somebody asks for them; None if the batch's would be asked for first, and it is better not to wait."""
    samples, channels, positions = x.shape
    cells, kind = samples * channels, layout(x)
    fits = cells <= CELLS and MANY <= positions <= ELEMENTS // cells and (kind == "rows" or runs_of(x) == 1)
    if fits and kind != "neither":
        return Untaken(x, 1, lambda: cell_moments(x), None, few=standardize, take_batch=lambda: cell_moments(x, shared=True))
    return None if batch else whole.cells_later(x)


def standardize(
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    centered: bool,
    bend: Bend | None,
    towards: Towards | None,
) -> AtOnce | None:
    """What `Moments.at_once` says, of those that are made of sets nobody has asked for."""
    sources, blend = _sources(moments), moments if isinstance(moments, Blend) else None
    if sources is None:
        return None
    x = sources[0].moments.x
    affine = (weight, bias, None if bend is None else bend.level)
    if towards is not None and any(t.numel() != x.shape[1] for t in towards[:2]):
        return None
    for t in affine if towards is None else (*affine, *towards[:2]):
        if t is not None and not _is_readable(t, x):
            return None
    for t in _weights(blend):
        if t.dtype != x.dtype or t.device != x.device or t.is_neg() or not t.is_contiguous() or t.shape != (len(sources),):
            return None
    return _Few(x, sources, blend, affine, (eps, centered), None if bend is None else bend.kind, towards)


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
    _, samples, channels = kept.shape
    cells = samples * channels
    mean, var = (kept.as_strided(shape, (channels, 1), cells * at) for at in (row, row + 1))
    return Moments(mean, var, count)


class _Few:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor

    def __init__(
        self,
        x: Tensor,
        sources: list[_Source],
        blend: Blend | None,
        affine: tuple[Tensor | None, Tensor | None, Tensor | None],
        options: tuple[float, ...],
        kind: Kind | None,
        towards: Towards | None,
    ) -> None:
        self.by_rows, (self.weight, self.bias, self.level), self.blend = layout(x) == "rows", affine, _weights(blend)
        self.kind, self.raised = None if kind is None else KINDS[kind], kind == "floor"
        (samples, channels, _), zero, item = x.shape, ZEROS[x.dtype], x.element_size()
        self.kept = kept = torch.empty((ROWS + 2 * len(sources), samples, channels), dtype=x.dtype, device=x.device)
        self.y = y = torch.empty_like(x)
        room = torch.empty(3 * samples * channels, dtype=torch.float64, device=x.device)
        read = [t if t is None or t.dtype == x.dtype else t.to(x.dtype) for t in (*affine, *(towards or ())[:2])]
        numbers = [*place(x, self.by_rows), *place(y, self.by_rows), 0, 0, 0, *x.shape, kept.data_ptr(), room.data_ptr()]
        for t in read[:3]:
            numbers += (0, 0) if t is None else (t.data_ptr(), channels if t.numel() > channels else 0)
        numbers += options
        numbers += (0, 0, 0, 0) if towards is None else (read[3].data_ptr(), read[4].data_ptr(), *towards[2:])
        numbers += (0, 0, 0, blend is not None and blend.softmax, len(sources), few_loops.settle.address(zero))
        weights = [t.data_ptr() for t in self.blend] or (0, 0)
        for m, begin, end, row in sources:
            numbers += (m.height, m.members, begin, end, *weights, row, 0, 0, 0, 0, 0, 0)
            weights = [address and address + item for address in weights]
        self.given = array("d", numbers)
        loop = few_loops.rows_forward if self.by_rows else few_loops.columns_forward
        loop(zero, self.kind, self.given.buffer_info()[0])
        cells = sources[0].moments.cells
        cells.settle(partial(_values, kept, MEAN, cells.shape, cells.count))
        for m, _, _, row in sources:
            m.settle(partial(_values, kept, row, m.shape, m.count))

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, *tuple[Pair, ...]]:
        """The gradients of x, weight, bias, level and what the moments are blended with."""
        x = laid_out(x, self.by_rows)  # a hook of saved tensors may have brought it back in another layout
        dy, d_x = like(dy, x), torch.empty_like(x)
        by_rows, zero, item = self.by_rows, ZEROS[x.dtype], x.element_size()
        cells = x.shape[0] * x.shape[1]
        room = torch.empty(5 * cells, dtype=torch.float64, device=x.device)
        owners = (self.weight, self.bias, self.level if self.raised else None)
        grads = [None if t is None else torch.empty(t.shape, dtype=x.dtype, device=x.device) for t in owners]
        given = array("d", self.given)
        given[:SIZES] = array("d", (*place(x, by_rows), *place(d_x, by_rows), *place(dy, by_rows)))
        given[D_WEIGHT:SOFTMAX] = array("d", [0 if t is None else t.data_ptr() for t in grads])
        given[SCRATCH], given[STAGE] = room.data_ptr(), few_loops.pull.address(zero)
        found = [(t, torch.empty_like(t)) for t in self.blend]
        for at, (_, grad) in enumerate(found, FIRST + D_WEIGHTS):
            for k in range(grad.numel()):
                given[at + k * RECORD] = grad.data_ptr() + k * item
        loop = few_loops.rows_backward if by_rows else few_loops.columns_backward
        loop(
            zero, self.kind, room.data_ptr() + 2 * room.element_size() * cells if self.raised else None, given.buffer_info()[0]
        )
        d_weight, d_bias, d_level = (None if d is None else in_type_of(t, d) for t, d in zip(owners, grads, strict=True))
        if self.level is not None and d_level is not None:
            found.append((self.level, d_level))
        return d_x, d_weight, d_bias, *found

"""From untaken moments to the loops that standardize a sample while it is in the cache."""

from array import array
from typing import Any

import torch
from torch import Tensor

from normsmith.arithmetic import Pair
from normsmith.cells import layout
from normsmith.kernels.cpu import threads, whole_columns
from normsmith.kernels.cpu.launch import ZEROS, cell_moments, like, place, runs_of
from normsmith.kernels.cpu.stages import Chain
from normsmith.kernels.cpu.whole_sets import merge, pull, settle
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Pooled

FEW = 16  # samples: below, cores share each of them, as whole ones would leave some idle
TASKS = 32  # sums for weight and bias at most, by the shape alone, so that results repeat to the bit on any number of cores


def cells_later(x: Tensor) -> Pooled:
    """The moments of cells, when somebody asks for them."""
    if layout(x) != "columns":
        return cell_moments(x)
    return Untaken(x, 1, lambda: cell_moments(x), _Standardized)


class _Way:
    """The stages of one direction."""

    def __init__(self, first: Any, second: Any, third: Any) -> None:
        self.together = Chain(first, second, third)
        self.apart = Chain(first), Chain(second), Chain(third)

    def run(self, x: Tensor, parts: int, tasks: int, arguments: tuple[float, ...], rest: tuple[float, ...]) -> "array[float]":
        """By sample, or, where samples are few, stage by stage; on as many cores as the size deserves."""
        samples, channels, size = x.shape
        zero, cores = ZEROS[x.dtype], threads.available(x.numel())
        shared = cores > 0 and samples < FEW and channels * size >= threads.GRAIN
        several = max(cores, 1)
        sums = 2 * channels * parts * (samples if shared else several)
        room = torch.empty(sums + 4 * channels * several, dtype=torch.float64)
        start = room.data_ptr()
        given = array("d", (*arguments, start, not shared, start + 8 * sums, *rest))
        where = given.buffer_info()[0]
        if shared:
            runs = samples * parts
            self.apart[0].run(zero, where, runs, 1, runs, cores)
            self.apart[1].run(zero, where, samples, parts, samples, 0)
            self.apart[2].run(zero, where, runs, 1, runs, cores)
        else:
            self.together.run(zero, where, samples, parts, tasks, cores)
        return given


_FORWARD = _Way(whole_columns.measure, settle, whole_columns.transfer)
_BACKWARD = _Way(whole_columns.gather, pull, whole_columns.back)
_MERGE = Chain(merge)


class _Standardized:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor
    moments: Pair | None

    def __init__(
        self, x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
    ) -> None:
        self.weight, self.bias = weight, bias
        samples, channels, size = x.shape
        sets = channels // members
        self.found = torch.empty((3, samples, sets), dtype=x.dtype)
        self.y = y = torch.empty_like(x)
        parts = runs_of(x)
        self.sizes = (channels, size, parts, sets, samples)
        factor, shift = _readable(weight, x), _readable(bias, x)
        self.rest = (self.found.data_ptr(), eps, centered)
        where = (*place(x, by_rows=False), *place(y, by_rows=False), 0, 0, 0)
        _FORWARD.run(x, parts, samples, (*where, *self.sizes, _address(factor), _address(shift), *self.rest), (0, 0, 0, 0))
        self.moments = (self.found[0], self.found[1]) if members == 1 else None

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        dy, d_x = like(dy, x), torch.empty_like(x)
        channels, _, parts, sets, samples = self.sizes
        tasks = min(samples, TASKS)
        factor, merged = _readable(self.weight, x), torch.empty((2, channels), dtype=x.dtype)
        room = torch.empty(2 * channels * tasks + 2 * samples * sets, dtype=torch.float64)
        start = room.data_ptr()
        where = (*place(x, by_rows=False), *place(d_x, by_rows=False), *place(dy, by_rows=False))
        more = (start + 16 * channels * tasks, start, tasks, merged.data_ptr())
        given = _BACKWARD.run(x, parts, tasks, (*where, *self.sizes, _address(factor), 0, *self.rest), more)
        _MERGE.run(ZEROS[x.dtype], given.buffer_info()[0], 1, 1, 1, 0)
        d_weight, d_bias = merged.unbind()
        return d_x, in_type_of(self.weight, d_weight), in_type_of(self.bias, d_bias)


def _readable(value: Tensor | None, x: Tensor) -> Tensor | None:
    return value if value is None or value.dtype == x.dtype else value.to(x.dtype)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()

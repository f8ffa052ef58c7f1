"""From untaken moments to the loops that standardize a sample while it is in the cache."""

from array import array
from typing import Any

import torch
from torch import Tensor

from normsmith.arithmetic import Pair
from normsmith.cells import layout
from normsmith.kernels.cpu import threads, whole_columns, whole_rows
from normsmith.kernels.cpu.launch import ZEROS, cell_moments, like, place, runs_of
from normsmith.kernels.cpu.stages import Chain
from normsmith.kernels.cpu.whole_sets import pull, settle
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Pooled

FEW = 16  # samples: below, cores share each of them, as whole ones would leave some idle
TASKS = 32  # sums for weight and bias at most, by the shape alone, so that results repeat to the bit on any number of cores
_NOWHERE = (0, 0, 0)


def cells_later(x: Tensor) -> Pooled:
    """The moments of cells, when somebody asks for them."""
    found = layout(x)
    if found == "neither" or (found == "rows" and _are_few(*x.shape)):
        return cell_moments(x)
    return Untaken(x, 1, lambda: cell_moments(x), _Standardized)


def _are_few(samples: int, channels: int, size: int) -> bool:
    """Whether cores had better share each sample."""
    return samples < FEW and channels * size >= threads.GRAIN


class _Way:
    """The stages of one direction, in one layout."""

    def __init__(self, first: Any, second: Any, third: Any) -> None:
        self.together = Chain(first, second, third)
        self.apart = Chain(first), Chain(second), Chain(third)

    def run(self, zero: Any, sizes: tuple[int, ...], tasks: int, arguments: tuple[float, ...], rest: tuple[float, ...]) -> None:
        """By sample, or, where samples are few, stage by stage; on as many cores as the size deserves."""
        channels, size, parts, _, samples = sizes
        cores = threads.available(samples * channels * size)
        shared, several = cores > 0 and _are_few(samples, channels, size), max(cores, 1)
        sums = 2 * channels * parts * (samples if shared else several)
        room = torch.empty(sums + 4 * channels * several, dtype=torch.float64, device="cpu")
        start = room.data_ptr()
        given = array("d", (*arguments, start, not shared, start + 8 * sums, *rest))
        where, _ = given.buffer_info()
        if shared:
            runs = samples * parts
            self.apart[0].run(zero, where, runs, 1, runs, cores)
            self.apart[1].run(zero, where, samples, parts, samples, 0)
            self.apart[2].run(zero, where, runs, 1, runs, cores)
        else:
            self.together.run(zero, where, samples, parts, tasks, cores)


_FORWARD = {
    by_rows: _Way(loops.measure, settle, loops.transfer) for by_rows, loops in ((False, whole_columns), (True, whole_rows))
}
_BACKWARD = {by_rows: _Way(loops.gather, pull, loops.back) for by_rows, loops in ((False, whole_columns), (True, whole_rows))}


class _Standardized:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor
    moments: Pair | None

    def __init__(
        self, x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
    ) -> None:
        self.weight, self.bias = weight, bias
        samples, channels, size = x.shape
        self.by_rows, sets = layout(x) == "rows", channels // members
        self.found = torch.empty((3, samples, sets), dtype=x.dtype, device=x.device)
        self.y = y = torch.empty_like(x)
        self.sizes = (channels, size, 1 if self.by_rows else runs_of(x), sets, samples)
        self.known = (self.found.data_ptr(), eps, centered)
        factor, shift = _readable(weight, x), _readable(bias, x)
        where = (*place(x, self.by_rows), *place(y, self.by_rows), *_NOWHERE)
        arguments = (*where, *self.sizes, _address(factor), _address(shift), *self.known)
        _FORWARD[self.by_rows].run(ZEROS[x.dtype], self.sizes, samples, arguments, _NOWHERE)
        self.moments = (self.found[0], self.found[1]) if members == 1 else None

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        x = laid_out(x, self.by_rows)  # a hook of saved tensors may have brought it back in another layout
        dy, d_x = like(dy, x), torch.empty_like(x)
        channels, _, _, sets, samples = self.sizes
        tasks, factor = min(samples, TASKS), _readable(self.weight, x)
        lines = torch.empty((2, samples, sets), dtype=x.dtype, device=x.device)
        sums = torch.empty((tasks, 2, channels), dtype=torch.float64, device=x.device)
        where = (*place(x, self.by_rows), *place(d_x, self.by_rows), *place(dy, self.by_rows))
        arguments = (*where, *self.sizes, _address(factor), 0, *self.known)
        rest = (lines.data_ptr(), sums.data_ptr(), tasks)
        _BACKWARD[self.by_rows].run(ZEROS[x.dtype], self.sizes, tasks, arguments, rest)
        if self.weight is None and self.bias is None:
            return d_x, None, None
        d_weight, d_bias = sums.sum(0).to(x.dtype).unbind()
        return d_x, in_type_of(self.weight, d_weight), in_type_of(self.bias, d_bias)


def laid_out(x: Tensor, by_rows: bool) -> Tensor:
    """A cut tensor in this layout."""
    if layout(x) == ("rows" if by_rows else "columns"):
        return x
    return x.contiguous() if by_rows else x.transpose(1, 2).contiguous().transpose(1, 2)


def _readable(value: Tensor | None, x: Tensor) -> Tensor | None:
    return value if value is None or value.dtype == x.dtype else value.to(x.dtype)


def _address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()

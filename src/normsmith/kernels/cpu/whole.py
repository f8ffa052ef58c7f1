"""From untaken moments to the loops that standardize a sample while it is in the cache."""

import torch
from torch import Tensor

from normsmith.arithmetic import Pair
from normsmith.cells import layout
from normsmith.kernels.cpu import threads, whole_columns, whole_parallel
from normsmith.kernels.cpu.launch import ZEROS, cell_moments, like, place, runs_of
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Pooled

FEW = 16  # samples: below, cores share each of them, as whole ones would leave some idle
TASKS = 32  # sums for weight and bias at most, by the shape alone, so that results repeat to the bit on any number of cores


def cells_later(x: Tensor) -> Pooled:
    """The moments of cells, when somebody asks for them."""
    if layout(x) != "columns":
        return cell_moments(x)
    return Untaken(x, 1, lambda: cell_moments(x), _Standardized)


class _Standardized:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor
    moments: Pair | None

    def __init__(
        self, x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
    ) -> None:
        self.weight, self.bias, self.centered = weight, bias, centered
        samples, channels, size = x.shape
        sets = channels // members
        self.sizes = (channels, size, runs_of(x), sets, samples)
        self.found = torch.empty((3, samples, sets), dtype=x.dtype)
        self.y = torch.empty_like(x)
        given = (_Read(weight, x), _Read(bias, x))
        arguments = (
            *place(x, by_rows=False),
            *place(self.y, by_rows=False),
            *self.sizes,
            given[0].address,
            given[1].address,
            self.found.data_ptr(),
            eps,
            centered,
        )
        cores = threads.available(x.numel())
        if cores == 0:
            whole_columns.standardize(ZEROS[x.dtype], *arguments, 0, samples)
        else:
            loop = whole_parallel.columns_standardize_runs if _is_shared(x) else whole_parallel.columns_standardize
            with threads.turn():
                loop(ZEROS[x.dtype], *arguments, cores)
        self.moments = (self.found[0], self.found[1]) if members == 1 else None

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        dy, d_x = like(dy, x), torch.empty_like(x)
        samples, channels, _ = x.shape
        weight, merged = _Read(self.weight, x), torch.empty((2, channels), dtype=x.dtype)
        arguments = (
            *place(dy, by_rows=False),
            *place(x, by_rows=False),
            *place(d_x, by_rows=False),
            *self.sizes,
            weight.address,
            self.found.data_ptr(),
            self.centered,
            merged.data_ptr(),
            min(samples, TASKS),
        )
        cores = threads.available(x.numel())
        if cores == 0:
            whole_columns.unstandardize_all(ZEROS[x.dtype], *arguments)
        else:
            loop = whole_parallel.columns_unstandardize_runs if _is_shared(x) else whole_parallel.columns_unstandardize
            with threads.turn():
                loop(ZEROS[x.dtype], *arguments, cores)
        d_weight, d_bias = merged.unbind()
        return d_x, in_type_of(self.weight, d_weight), in_type_of(self.bias, d_bias)


def _is_shared(x: Tensor) -> bool:
    """Whether cores share samples."""
    samples, channels, size = x.shape
    return samples < FEW and channels * size >= threads.GRAIN


class _Read:
    """A weight or bias in the type of x, as long as its address is used; 0 for none."""

    def __init__(self, value: Tensor | None, x: Tensor) -> None:
        self.kept = value if value is None or value.dtype == x.dtype else value.to(x.dtype)
        self.address = 0 if self.kept is None else self.kept.data_ptr()

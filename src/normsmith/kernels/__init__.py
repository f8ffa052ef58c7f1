"""Four operations on cut tensors, which know no method and no module, and some on statistics; every backend has the same.

    cell_moments(x, within, shared)                  Moments of the cells, or pooled over the samples
    cells_later(x)                                   the same of cells, which may wait until somebody asks for their values
    cell_affine(x, center, scale, bias, floor)       y = (x - center) * scale + bias, or the floor if that is above
    cell_grad_sums(dy, x, center, within, shared, floor)   sums of dy and of dy * (x - center)
    cell_grad_input(dy, x, scale, slope, pivot, offset, within, floor)  dx = dy * scale + ((x - pivot) * slope + offset)
    pool, share, weighted_sum, weigh, standardize, unstandardize, lines    as in `arithmetic.py`, in as few steps as may be
    move_average(averages, values, factors, step)    averages moved towards values * factors by `step` of the way, in place

`x` and `dy` are cut tensors (N, C, S); statistics are (N, C), or (1, C) where all samples share them (`shared`), at least float32.
`within` is a pair of such statistics: only elements strictly between them count, in the moments, the sums, and the bracket of the
gradient. A `floor` is a statistic too; the operations of the gradient get it with what y is made of, to tell whose dy goes to the floor
instead: sums take one of the two, bounds or floor. What an operation returns has the memory format of its input.

Backends: `reference` (plain torch: every device, differentiable), `cpu` (numba), `cuda` (Triton). `choose.py` says which one does the
work.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from normsmith.arithmetic import Arithmetic
from normsmith.moments import Pooled

Bounds = tuple[Tensor, Tensor]


class Floor(NamedTuple):
    """The affine map of a forward, and the level below which its output is that level."""

    center: Tensor
    scale: Tensor
    bias: Tensor
    level: Tensor


class Sums(NamedTuple):
    """The sums of dy, of dy * (x - center), and, with a floor, of the dy that go to it."""

    total: Tensor
    product: Tensor
    below: Tensor | None = None


class Backend(Arithmetic, Protocol):
    """A module with these operations."""

    def cell_moments(self, x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled: ...

    def cells_later(self, x: Tensor) -> Pooled: ...

    def cell_affine(self, x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, floor: Tensor | None = None) -> Tensor: ...

    def cell_grad_sums(
        self,
        dy: Tensor,
        x: Tensor,
        center: Tensor,
        within: Bounds | None = None,
        *,
        shared: bool = False,
        floor: Floor | None = None,
    ) -> Sums: ...

    def cell_grad_input(
        self,
        dy: Tensor,
        x: Tensor,
        scale: Tensor,
        slope: Tensor,
        pivot: Tensor,
        offset: Tensor,
        within: Bounds | None = None,
        floor: Floor | None = None,
    ) -> Tensor: ...

    def move_average(
        self, averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float
    ) -> None: ...

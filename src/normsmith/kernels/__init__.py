"""Four operations on cut tensors, which know no method and no module, and some on statistics; every backend has the same.

    cell_moments(x, within, shared)                  Moments of the cells, or pooled over the samples
    cells_later(x, batch)                            the same of cells, which may wait until somebody asks for their values; None
                                                     if those of the batch are wanted too, and there is no way to make use of that
    cell_affine(x, center, scale, bias, bend)        y = (x - center) * scale + bias, bent
    cell_grad_sums(dy, x, center, within, shared, bent)    sums of dy and of dy * (x - center)
    cell_grad_input(dy, x, scale, slope, pivot, offset, within, bent)   dx = dy * scale + ((x - pivot) * slope + offset)
    pool, share, weighted_sum, weigh, standardize, unstandardize, lines    as in `arithmetic.py`, in as few steps as may be
    move_average(averages, values, factors, step)    averages moved towards values * factors by `step` of the way, in place; towards
                                                     each row of the values in order where they have several

`x` and `dy` are cut tensors (N, C, S); statistics are (N, C), or (1, C) where all samples share them (`shared`), at least float32.
`within` is a pair of such statistics: only elements strictly between them count, in the moments, the sums, and the bracket of the
gradient. A `bend` is an activation of the affine map, in the same pass, with a statistic as its one number. The operations of the
gradient get it with what y was made of, and multiply dy with its derivative there, so that nothing but x is kept: sums take one of the
two, bounds or bend. A new activation is one line of `Kind`, and its two formulas in `reference.py`, `cpu/bend.py` and `cuda/tiles.py`.
What an operation returns has the memory format of its input.

Backends: `reference` (plain torch: every device, differentiable), `cpu` (numba), `cuda` (Triton). `choose.py` says which one does the
work.
"""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from normsmith.arithmetic import Arithmetic
from normsmith.moments import Pooled

Bounds = tuple[Tensor, Tensor]


Kind = Literal["floor", "relu", "relu6", "leaky_relu", "silu", "hardswish"]


class Bend(NamedTuple):
    """An activation: max(y, level) for "floor", whose level has a gradient; those of torch, the level the slope of "leaky_relu", else 0."""

    kind: Kind
    level: Tensor


class Bent(NamedTuple):
    """The affine map of a forward, and what became of its output."""

    center: Tensor
    scale: Tensor
    bias: Tensor
    bend: Bend


class Sums(NamedTuple):
    """The sums of dy, of dy * (x - center), and, with a floor, of the dy that go to it."""

    total: Tensor
    product: Tensor
    below: Tensor | None = None


class Backend(Arithmetic, Protocol):
    """A module with these operations."""

    def cell_moments(self, x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Pooled: ...

    def cells_later(self, x: Tensor, *, batch: bool = False) -> Pooled | None: ...

    def cell_affine(self, x: Tensor, center: Tensor, scale: Tensor, bias: Tensor, bend: Bend | None = None) -> Tensor: ...

    def cell_grad_sums(
        self,
        dy: Tensor,
        x: Tensor,
        center: Tensor,
        within: Bounds | None = None,
        *,
        shared: bool = False,
        bent: Bent | None = None,
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
        bent: Bent | None = None,
    ) -> Tensor: ...

    def move_average(
        self, averages: tuple[Tensor, ...], values: tuple[Tensor, ...], factors: tuple[float, ...], step: float
    ) -> None: ...

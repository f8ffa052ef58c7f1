"""Four operations on cut tensors, which know no method and no module; every backend has the same four.

    cell_moments(x, within, shared)                              Moments of the cells, or pooled over the samples
    cell_affine(x, center, scale, bias)                          y = (x - center) * scale + bias
    cell_grad_sums(dy, x, center, within, shared)                sums of dy and of dy * (x - center)
    cell_grad_input(dy, x, scale, slope, pivot, offset, within)  dx = dy * scale + ((x - pivot) * slope + offset)

`x` and `dy` are cut tensors (N, C, S); statistics are (N, C), or (1, C) where all samples share them (`shared`), at least float32.
`within` is a pair of such statistics: only elements strictly between them count, in the moments, the sums, and the bracket of the
gradient. What an operation returns has the memory format of its input.

Backends: `reference` (plain torch: every device, differentiable), `cpu` (numba). `choose.py` says which one does the work.
"""

from typing import Protocol

from torch import Tensor

from normsmith.moments import Moments

Bounds = tuple[Tensor, Tensor]


class Backend(Protocol):
    """A module with the four operations."""

    def cell_moments(self, x: Tensor, within: Bounds | None = None, *, shared: bool = False) -> Moments: ...

    def cell_affine(self, x: Tensor, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor: ...

    def cell_grad_sums(
        self, dy: Tensor, x: Tensor, center: Tensor, within: Bounds | None = None, *, shared: bool = False
    ) -> tuple[Tensor, Tensor]: ...

    def cell_grad_input(
        self,
        dy: Tensor,
        x: Tensor,
        scale: Tensor,
        slope: Tensor,
        pivot: Tensor,
        offset: Tensor,
        within: Bounds | None = None,
    ) -> Tensor: ...

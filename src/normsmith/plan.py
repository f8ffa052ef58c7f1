"""What is counted: which moments a method sees, of which elements, of how many ranks; and the gradient back through them.

A mask is worked into x beforehand: what it leaves out becomes NaN, which lies between no bounds, so that the same operations serve
masks and bounds. A NaN that was in x already is told apart by the count.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from normsmith.arithmetic import Line
from normsmith.kernels import Backend, Bounds
from normsmith.moments import Moments, Pooled, Pull
from normsmith.world import World

Sees = Literal["cells", "batch", "both", "nothing"]


@dataclass(frozen=True, eq=False)
class Plan:
    """The moments to take: of cells, of the batch or both; within bounds, under a mask, over the ranks of a world."""

    sees: Sees
    within: Bounds | None = None
    mask: Tensor | None = None
    world: World | None = None

    def masked(self, x: Tensor) -> Tensor:
        """`x` with NaN where the mask is false."""
        return x if self.mask is None else torch.where(self.mask, x, math.nan)

    def filled(self, view: Tensor) -> Tensor:
        """The cut tensor with zero in these places, for operations that would carry a NaN into sums."""
        return view if self.mask is None else torch.where(self._cut_mask(view), view, 0)

    def everywhere(self, view: Tensor) -> Bounds | None:
        """Bounds that leave out nothing but what the mask does."""
        if self.mask is None:
            return None
        limit = torch.full((1, view.shape[1]), math.inf, dtype=view.dtype, device=view.device)
        return -limit, limit

    def moments(self, backend: Backend, view: Tensor, *, later: bool = False) -> tuple[Pooled | None, Pooled | None]:
        """(cells, batch), None for what the method does not see; `later`, not before somebody asks for them, as long as x stands."""
        if self.sees == "nothing":
            return None, None
        if later and self.within is None and self.mask is None and (self.world is None or self.sees == "cells"):
            waiting = backend.cells_later(view, batch=self.sees != "cells")
            if waiting is not None:
                return self._seen(waiting, waiting.pool(0) if self.sees != "cells" else None)
        found = backend.cell_moments(view, self.within or self.everywhere(view), shared=self.sees == "batch")
        if self.within is not None:
            found = _spoiled(found, self.within, self.sees == "batch")
        elif self.mask is not None:
            found = self._honest(found, view)
        batch = None if self.sees == "cells" else found if self.sees == "batch" else found.pool(0)
        if batch is not None and self.world is not None:
            batch = self.world.merge(batch if view.numel() else _nothing(batch))
        return self._seen(found, batch)

    def _seen(self, cells: Pooled, batch: Moments | None) -> tuple[Pooled | None, Pooled | None]:
        assert batch is None or isinstance(batch, Pooled)
        return None if self.sees == "batch" else cells, batch

    def line(self, pull: Pull) -> Line | None:
        """The gradients through moments of x, one line in x; None if nothing went that way."""
        found = []
        for moments, *grads in pull.pooled:
            d_mean, d_var = self.world.add(*grads) if moments.world and self.world is not None else grads
            found.append((d_mean, d_var, moments.mean, moments.count))
        return pull.by.lines(found) if found else None

    def _cut_mask(self, view: Tensor) -> Tensor:
        assert self.mask is not None
        samples, channels, *spatial = self.mask.shape
        flat = self.mask.reshape(samples, channels, math.prod(spatial))
        return flat.expand(view.shape[0], view.shape[1], view.shape[2])

    def _honest(self, found: Pooled, view: Tensor) -> Pooled:
        """With NaN in the moments of cells that hold fewer numbers than the mask has places."""
        places = self._cut_mask(view).sum((0, 2) if self.sees == "batch" else 2).view_as(found.mean)
        lost = found.counts() < places
        return replace(found, mean=found.mean.masked_fill(lost, math.nan), var=found.var.masked_fill(lost, math.nan))


def _spoiled(found: Pooled, within: Bounds, shared: bool) -> Pooled:
    """With NaN in the moments between bounds that are NaN themselves, being made of such data; they count, to be seen in a pool."""
    lost = within[0].isnan() | within[1].isnan()
    lost = lost.any(0, keepdim=True) if shared else lost
    mean, var = found.mean.masked_fill(lost, math.nan), found.var.masked_fill(lost, math.nan)
    return replace(found, mean=mean, var=var, count=found.counts().masked_fill(lost, 1))


def _nothing(batch: Moments) -> Moments:
    """The moments of a rank without data, of the same shape; the count too, as all ranks must send as many numbers."""
    count = torch.zeros_like(batch.mean) if isinstance(batch.count, Tensor) else 0
    return Moments(torch.zeros_like(batch.mean), torch.zeros_like(batch.var), count)

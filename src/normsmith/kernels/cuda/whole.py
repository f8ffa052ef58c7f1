"""From untaken moments to the kernels that standardize data with one read of x."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from normsmith.arithmetic import Arithmetic, Pair
from normsmith.cells import layout
from normsmith.kernels.cuda import chip, geometry, launch, reduce, small
from normsmith.kernels.cuda.geometry import Splits, power
from normsmith.kernels.reference import statistics_type
from normsmith.kernels.untaken import Untaken, in_type_of
from normsmith.moments import Pooled

# Unmeasured: chosen because x crosses memory twice forward (read, write), not three times, and three times backward, not five.
# So many elements of float32 are 32 for each of 512 threads, half of that again for dy, of the 128 registers that a thread can have.
ON_CHIP = 16384
SECTOR = 32  # adjacent bytes that memory gives at once


@dataclass(frozen=True)
class Held:
    """What a program holds: `height` channels by `width` positions of a sample, one set of `members` channels if `whole`."""

    members: int
    whole: bool
    height: int
    width: int
    blocks: int

    @staticmethod
    def of(x: Tensor, members: int) -> "Held | None":
        """None where it does not fit on the chip, or where a program would read a little of every sector."""
        _, channels, size = x.shape
        found, width = layout(x), power(size)
        adjacent = SECTOR // x.element_size() if found == "columns" else 1
        if found == "neither" or (members > 1 and adjacent > members < channels):
            return None
        height = power(members) if members > 1 else min(power(channels), max(geometry.TILE // width, adjacent))
        if height * width * statistics_type(x).itemsize > 4 * ON_CHIP:
            return None
        return Held(members, members > 1, height, width, -(-channels // (members if members > 1 else height)))

    def constants(self, x: Tensor, centered: bool) -> dict[str, Any]:
        """The arguments that a kernel is compiled for."""
        warps = min(max(self.height * self.width // 512, 1), 16)
        of_type = launch.TYPES[statistics_type(x)]
        return {"warps": warps, "BC": self.height, "BS": self.width, "TYPE": of_type, "WHOLE": self.whole, "CENTERED": centered}


class _Standardized:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor
    moments: Pair | None

    def __init__(self, x: Tensor, held: Held, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool) -> None:
        self.held, self.weight, self.bias, self.centered = held, weight, bias, centered
        samples, channels, size = x.shape
        sets = channels // held.members
        found = torch.empty((3, samples, sets), dtype=statistics_type(x), device=x.device)
        self.moments, self.mean, self.inverse = None if held.whole else (found[0], found[1]), found[0], found[2]
        self.y = torch.empty_like(x)
        self.sizes = (float(held.members * size), held.members, channels, size, sets, held.blocks)
        given = (x, *x.stride(), self.y, *self.y.stride(), weight, bias, *found, float(eps), *self.sizes)
        launch.launch(chip.standardize, samples * held.blocks, x, *given, **held.constants(x, centered))

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        dy, d_x = launch.like(dy, x), torch.empty_like(x)
        samples, channels, _ = x.shape
        span = -(-samples * self.held.blocks // geometry.PROGRAMS)
        splits = Splits(1, samples, span, -(-samples // span))
        wanted = self.weight is not None or self.bias is not None
        merged = torch.empty((2, 1, channels), dtype=self.mean.dtype, device=x.device) if wanted else None
        parts = None if merged is None else launch.parts_of(merged, channels, splits)
        places = [item for t in (dy, x, d_x) for item in (t, *t.stride())]
        given = (*places, self.weight, self.mean, self.inverse, parts, splits.number * channels, *self.sizes, samples, span)
        constants = self.held.constants(x, self.centered)
        launch.launch(chip.unstandardize, splits.number * self.held.blocks, x, *given, **constants)
        if merged is None or parts is None:
            return d_x, None, None
        d_weight, d_bias = launch.merge_parts(reduce.merge_sums, merged, parts, splits, LAYERS=2).view(2, channels).unbind()
        return d_x, in_type_of(self.weight, d_weight), in_type_of(self.bias, d_bias)


def _standardize(
    x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
) -> _Standardized | None:
    """If a program can hold the sets."""
    held = Held.of(x, members)
    return None if held is None else _Standardized(x, held, weight, bias, eps, centered)


def cells_later(x: Tensor, *, batch: bool = False) -> Pooled | None:
    """The moments of cells, when somebody asks for them."""
    if batch:
        return None
    if Held.of(x, 1) is None and Held.of(x, x.shape[1]) is None:
        return small.cell_moments(x)
    return Untaken(x, 1, lambda: small.cell_moments(x), _standardize, cast(Arithmetic, small))

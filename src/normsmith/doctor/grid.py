"""The bins of a histogram: OCTAVE of equal width in every octave of 1 + |z|, on both sides of a center.

z is the distance from the center in units of the grid's scale, a power of two next to the standard deviation of the first data seen.
A bin is therefore 1/32 of a scale wide at the center, and at most (1 + |z|) / 32 at z; up to |z| = 127, beyond which one bin on each
side ends at the extremes of the data. The center is a whole number of scales, so that streams over data of one kind, on several ranks
say, come to the same grid and merge exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor

OCTAVE = 32
OCTAVES = 7
SIDE = OCTAVE * OCTAVES + 1
BINS = 2 * SIDE
SHIFT = 23 - 5  # the bits of a float32 below its octave and its bin
_ONE = 0x3F800000  # the bits of 1.0


class Grid(NamedTuple):
    """Center and scale of every channel's bins, float64; a scale of 0 where nothing but one value, the center, is known yet."""

    center: Tensor
    scale: Tensor

    def narrowed(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The center and the inverse of the scale in the type of the data."""
        inverse = torch.where(self.scale > 0, 1 / torch.where(self.scale > 0, self.scale, 1), 1)
        return self.center.to(dtype).contiguous(), inverse.clamp_max(torch.finfo(dtype).max).to(dtype).contiguous()


def fitting(mean: Tensor, deviation: Tensor, dtype: torch.dtype) -> Grid:
    """The grid for data of that mean and standard deviation, of that type."""
    bits = 120 if dtype == torch.float32 else 1000
    scale = torch.exp2(deviation.clamp_min(torch.finfo(torch.float64).tiny).log2().round().clamp(-bits, bits))
    center = (mean / scale).round() * scale
    center = torch.where(center.isfinite(), center, mean).to(dtype).double()
    alone = deviation == 0
    return Grid(torch.where(alone, mean, center), torch.where(alone, 0, scale))


def places(x: Tensor, grid: Grid) -> Tensor:
    """The bin of every element of x, (C, elements)."""
    center, inverse = (t.unsqueeze(1) for t in grid.narrowed(x.dtype))
    words = (1 + ((x - center) * inverse).abs()).float().view(torch.int32).long()
    bins = ((words - _ONE) >> SHIFT).clamp(0, SIDE - 1)
    return torch.where(x >= center, SIDE + bins, SIDE - 1 - bins)


def edges(grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    """The borders of the bins, (C, BINS + 1), none outside of the data's extremes."""
    octave = torch.arange(SIDE, dtype=torch.float64, device=low.device)
    distance = torch.exp2(octave.div(OCTAVE, rounding_mode="floor")) * (1 + octave.remainder(OCTAVE) / OCTAVE) - 1
    steps = torch.cat([-distance.flip(0), distance[1:]])  # without the outermost two
    inner = grid.center.unsqueeze(1) + steps * grid.scale.unsqueeze(1)
    borders = torch.cat([low.unsqueeze(1), inner, high.unsqueeze(1)], 1)
    return borders.clamp(low.unsqueeze(1), high.unsqueeze(1))

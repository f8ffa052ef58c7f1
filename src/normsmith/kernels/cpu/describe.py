"""From a cut tensor to the loop of `shape.py`."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normsmith.cells import layout
from normsmith.kernels.cpu import parallel, shape, threads
from normsmith.kernels.cpu.launch import ZEROS

TILE = 16  # channels that fill a cache line
_WORDS: dict[torch.dtype, tuple[Any, Any, Any]] = {
    torch.float32: (np.int32(0), np.int32(31), np.int32(0x7FFFFFFF)),
    torch.float64: (np.int64(0), np.int64(63), np.int64(0x7FFFFFFFFFFFFFFF)),
}
_NUMBERS = {torch.int32: np.int32(0), torch.int64: np.int64(0)}


def describe(
    x: Tensor, facts: Tensor, extremes: Tensor | None, tallies: Tensor | None, center: Tensor, inverse: Tensor, shift: int
) -> None:
    """Add x of shape (N, C, S) to `facts`, (C, 8), and to `tallies`, (C, bins), whose grid `center` and `inverse` give.

    `extremes`, (2, N, C) in the type of x, is overwritten.
    """
    if layout(x) == "neither":
        x = x.contiguous()
    samples, channels, size = x.shape
    strides = x.stride()
    if size == 1:  # the positions of a channel are its samples
        samples, size, strides = 1, samples, (0, strides[1], strides[0])
        extremes = None if extremes is None else _from_samples(x, extremes)
    tile = 1 if strides[2] == 1 or channels == 1 else TILE
    tiles = math.ceil(channels / tile)
    number = _NUMBERS[torch.int32 if tallies is None else tallies.dtype]
    lows, highs = (None, None) if extremes is None else (extremes[0].data_ptr(), extremes[1].data_ptr())
    side = 0 if tallies is None else tallies.shape[1] // 2
    arguments = (
        *(ZEROS[x.dtype], *_WORDS[x.dtype], x.data_ptr(), *strides, samples, channels, size, tile),
        *(center.data_ptr(), inverse.data_ptr(), np.int32(side), np.int32(shift)),
        *(number, None if tallies is None else tallies.data_ptr(), facts.data_ptr(), lows, highs),
    )
    cores = min(threads.available(x.numel()), tiles)
    if cores == 0:
        shape.describe(*arguments, 0, tiles)
        return
    with threads.turn():
        parallel.shape_describe(*arguments, tiles, cores)


def _from_samples(x: Tensor, extremes: Tensor) -> None:
    """Cells of one element are their own extremes."""
    extremes.copy_(x.squeeze(2))

"""From a cut tensor to the loop of `shape.py`."""

import math

import numpy as np
import torch
from torch import Tensor

from normsmith.cells import layout
from normsmith.kernels.cpu import parallel, shape, threads
from normsmith.kernels.cpu.launch import ZEROS

TILE = 16  # channels that fill a cache line
RUN = 1024  # positions of adjacent channels that are adjacent too, and read in one go
WORDS = {torch.float32: np.int32(0), torch.float64: np.int64(0)}
_SIGN = np.int32(-(2**31))  # the bit of it
_NUMBERS = {torch.int32: np.int32(0), torch.int64: np.int64(0)}


def describe(x: Tensor, facts: Tensor, extremes: Tensor, tallies: Tensor | None, grid: tuple[Tensor, Tensor] | None) -> None:
    """Add x of shape (N, C, S) to `facts`, (C, 8), and to `tallies`, (C, bins); the grid is its center and inverse scale, (C,) each.

    `extremes`, (2, C, N), is overwritten; it and the grid are of the type of x.
    """
    if layout(x) == "neither":
        x = x.contiguous()
    samples, channels, size = x.shape
    strides = x.stride()
    if size == 1:  # the positions of a channel are its samples
        extremes.copy_(x.squeeze(2).T)
        samples, size, strides = 1, samples, (0, strides[1], strides[0])
    tile = max(1, min(TILE, RUN // size)) if strides[2] == 1 else TILE
    tiles = math.ceil(channels / tile)
    number = _NUMBERS[torch.int32 if tallies is None else tallies.dtype]
    lows, highs = (0, 0) if x.shape[2] == 1 else (extremes[0].data_ptr(), extremes[1].data_ptr())
    side = 0 if tallies is None else tallies.shape[1] // 2
    center, inverse = (0, 0) if grid is None else (grid[0].data_ptr(), grid[1].data_ptr())
    arguments = (
        *(ZEROS[x.dtype], WORDS[x.dtype], x.data_ptr(), *strides, samples, channels, size, tile),
        *(center, inverse, np.int32(side)),
        *(number, 0 if tallies is None else tallies.data_ptr(), facts.data_ptr(), lows, highs),
    )
    cores = min(threads.available(x.numel()), tiles)
    if cores == 0:
        shape.describe(*arguments, 0, tiles)
        return
    with threads.turn():
        parallel.shape_describe(*arguments, tiles, cores)


def keep_largest(scores: Tensor, samples: Tensor, keys: Tensor) -> None:
    """Insert float32 scores, (N, C), of samples with these int64 numbers, into descending int64 keys, (C, k)."""
    where = (scores.data_ptr(), *scores.stride(), np.int32(0), samples.data_ptr(), *scores.shape)
    shape.keep_largest(*where, keys.data_ptr(), keys.shape[1])


def keep_tails(lows: Tensor, highs: Tensor, samples: Tensor, keys: Tensor) -> None:
    """Insert float32 highs and the negatives of lows, (N, C) of equal strides each, into the two halves of the keys, (2 C, k)."""
    where = (lows.data_ptr(), highs.data_ptr(), *highs.stride(), _SIGN, samples.data_ptr(), *highs.shape)
    shape.keep_tails(*where, keys.data_ptr(), keys.shape[1])

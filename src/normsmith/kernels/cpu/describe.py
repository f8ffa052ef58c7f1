"""From a tensor to the loop of `shape.py`."""

import math

import numpy as np
import torch
from torch import Tensor

from normsmith.cells import cut, layout
from normsmith.kernels.cpu import parallel, shape, threads
from normsmith.kernels.cpu.launch import ZEROS

TILE = 16  # channels that fill a cache line
RUN = 1024  # positions of adjacent channels that are adjacent too, and read in one go
WORDS = {torch.float32: np.int32(0), torch.float64: np.int64(0)}
_SIGN = np.int32(-(2**31))  # the bit of it
_NUMBERS = {torch.int32: np.int32(0), torch.int64: np.int64(0)}


class Pass:
    """What was looked up for one x of shape (N, C, ...), and is good for all that are laid out alike: it costs more than a small loop.

    Each x is added to `facts`, (C, 8), and to `tallies`, (C, bins), on the grid: its center and inverse scale, (C,) each, of x's type.
    """

    def __init__(self, x: Tensor, facts: Tensor, tallies: Tensor | None, grid: tuple[Tensor, Tensor] | None) -> None:
        cells = cut(x.detach())
        self._kind = x.shape, x.stride(), x.dtype
        self._held = facts, tallies, grid  # as their addresses are kept
        self._copied = layout(cells) == "neither" or cells.data_ptr() != x.data_ptr()
        cells = cells.contiguous() if self._copied else cells
        (samples, channels, size), strides = cells.shape, cells.stride()
        self._extremes = _room(x).unbind() if size > 1 else None
        lows, highs = (0, 0) if self._extremes is None else (t.data_ptr() for t in self._extremes)
        if size == 1:  # the positions of a channel are its samples
            samples, size, strides = 1, samples, (0, strides[1], strides[0])
        tile = max(1, min(TILE, RUN // size)) if strides[2] == 1 else TILE
        self._elements, self._tiles = x.numel(), math.ceil(channels / tile)
        number = _NUMBERS[torch.int32 if tallies is None else tallies.dtype]
        side = 0 if tallies is None else tallies.shape[1] // 2
        center, inverse = (0, 0) if grid is None else (grid[0].data_ptr(), grid[1].data_ptr())
        self._before = ZEROS[x.dtype], WORDS[x.dtype]
        self._behind = (
            *(*strides, samples, channels, size, tile, center, inverse, np.int32(side)),
            *(number, 0 if tallies is None else tallies.data_ptr(), facts.data_ptr(), lows, highs),
        )

    def takes(self, x: Tensor) -> bool:
        """Whether x is laid out like that."""
        return (x.shape, x.stride(), x.dtype) == self._kind

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Add x; the least and the greatest element of every cell, (N, C) each, which are good until the next call."""
        cells = cut(x.detach()).contiguous() if self._copied else x
        arguments = *self._before, cells.data_ptr(), *self._behind
        cores = min(threads.available(self._elements), self._tiles)
        if cores == 0:
            shape.describe(*arguments, 0, self._tiles)
        else:
            with threads.turn():
                parallel.shape_describe(*arguments, self._tiles, cores)
        return self._extremes or _room(x).copy_(x.detach().flatten(1)).unbind()


def _room(x: Tensor) -> Tensor:
    """For two numbers of every cell, (2, N, C), those of a channel being adjacent."""
    return x.new_empty((2, x.shape[1], x.shape[0])).mT


def keep_largest(scores: Tensor, samples: Tensor, keys: Tensor) -> None:
    """Insert float32 scores, (N, C), of samples with these int64 numbers, into descending int64 keys, (C, k)."""
    where = (scores.data_ptr(), *scores.stride(), np.int32(0), samples.data_ptr(), *scores.shape)
    shape.keep_largest(*where, keys.data_ptr(), keys.shape[1])


def keep_tails(lows: Tensor, highs: Tensor, samples: Tensor, keys: Tensor) -> None:
    """Insert float32 highs and the negatives of lows, (N, C) of equal strides each, into the two halves of the keys, (2 C, k)."""
    where = (lows.data_ptr(), highs.data_ptr(), *highs.stride(), _SIGN, samples.data_ptr(), *highs.shape)
    shape.keep_tails(*where, keys.data_ptr(), keys.shape[1])

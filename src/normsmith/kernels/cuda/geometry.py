"""How a cut tensor is cut into tiles, and the tiles shared out to programs: by the shape alone, so that results repeat to the bit."""

from dataclasses import dataclass

from torch import Tensor

from normsmith.cells import layout

TILE = 2048  # elements a program holds at once: 16 for each of 128 threads
WIDTH = 64  # of these, adjacent channels in columns
LEAST = 16  # elements of x in a tile, however many components each is held for
POINTS = 32  # of a joint mixture in a tile, in rows
PROGRAMS = 1024  # enough to fill the machine: several for each multiprocessor of the largest there are
SHORT = 8  # tiles that one program adds up sooner than a second kernel merges what several found
LONGEST = 64  # tiles that a thread may add up in float32
MERGED = 1024  # partial results a merging program holds at once


def power(number: int) -> int:
    """The least power of two that is not below the number."""
    return 1 << max(number - 1, 0).bit_length()


@dataclass(frozen=True)
class Tiles:
    """A cut tensor of this shape in tiles of `height` channels by `width` positions, each held `depth` times."""

    samples: int
    channels: int
    size: int
    height: int
    width: int
    depth: int = 1

    @staticmethod
    def of(x: Tensor, depth: int = 1, points: bool = False) -> "Tiles":
        """The tiles of a tensor in rows or columns: longest along what is adjacent, of few positions where these are points."""
        samples, channels, size = x.shape
        tile = max(TILE // depth, LEAST)
        if layout(x) == "rows":
            width = min(power(size), POINTS if points else tile, tile)
            height = min(power(channels), tile // width)
        else:
            height = min(power(channels), WIDTH, tile)
            width = min(power(size), tile // height)
            height = min(power(channels), tile // width)
        return Tiles(samples, channels, size, height, width, depth)

    @property
    def warps(self) -> int:
        """Groups of 32 threads for a program: fewer for tiles that would leave them idle."""
        return min(max(self.height * self.width * self.depth // 512, 1), 4)

    @property
    def blocks(self) -> int:
        """Of channels."""
        return -(-self.channels // self.height)

    @property
    def along(self) -> int:
        """Tiles along the positions of a sample."""
        return -(-self.size // self.width)


@dataclass(frozen=True)
class Splits:
    """How the `run` tiles of each of `outer` results are shared out to `number` programs, `span` tiles each."""

    outer: int
    run: int
    span: int
    number: int

    @staticmethod
    def of(tiles: Tiles, shared: bool) -> "Splits":
        """As many programs as fill the machine, more where a thread would add up too many numbers, one where there are few."""
        outer = 1 if shared else tiles.samples
        run = tiles.along * (tiles.samples if shared else 1)
        wanted = max(PROGRAMS // (outer * tiles.blocks), -(-run // LONGEST))
        span = run if run <= SHORT else -(-run // min(max(wanted, 1), run))
        return Splits(outer, run, span, -(-run // span))

    @staticmethod
    def single(tiles: Tiles) -> "Splits":
        """One program for each tile, where nothing is to be added up."""
        run = tiles.along * tiles.samples
        return Splits(1, run, 1, run)


def fold_samples(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape as one sample of N*S positions, where all samples share their statistics and strides allow it."""
    samples, channels, size = tensors[0].shape
    if samples == 1:
        return tensors
    if size == 1:
        return tuple(t.as_strided((1, channels, samples), (0, t.stride(1), t.stride(0))) for t in tensors)
    if all(t.stride(0) == size * t.stride(2) for t in tensors):
        return tuple(t.as_strided((1, channels, samples * size), (0, t.stride(1), t.stride(2))) for t in tensors)
    return tensors


def fold_cells(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape as one sample of N*C channels, where every cell has statistics of its own and strides allow it."""
    samples, channels, size = tensors[0].shape
    if samples > 1 and all(t.stride(0) == channels * t.stride(1) for t in tensors):
        return tuple(t.as_strided((1, samples * channels, size), (0, t.stride(1), t.stride(2))) for t in tensors)
    return tensors

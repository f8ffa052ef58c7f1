"""The operations of mixtures for CPU tensors: from cut tensors to the loops of `mixture_loops.py`, in any strides."""

import math
from typing import Any

import torch
from torch import Tensor

from normsmith.kernels import Sums
from normsmith.kernels.cpu import cache, threads
from normsmith.kernels.cpu.launch import ZEROS
from normsmith.kernels.mixtures import By, Density, Draw
from normsmith.moments import Moments

with cache.in_own_folder():
    from normsmith.kernels.cpu import mixture_blocks as blocks
    from normsmith.kernels.cpu import mixture_loops as loops
    from normsmith.kernels.cpu import mixture_parallel as parallel

RUN = 8192  # positions of a channel in one task: by the shape alone, so that results repeat to the bit on any number of cores
POINTS = 2048  # points of a joint mixture in one task
LOG2_E = 1 / math.log(2)  # logits are to the base 2 in the loops
TILE = 16  # channels that fill a cache line


class _Cut:
    """How a tensor is cut into tasks."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        samples, self.channels, self.size = x.shape
        self.positions = samples * self.size
        self.one_run = self.size == 1  # the positions of a channel are its samples
        self.tile = TILE if self.strides(x)[2] != 1 else 1
        self.runs = math.ceil(self.positions / RUN)
        self.tasks = math.ceil(self.channels / self.tile) * self.runs

    def strides(self, x: Tensor) -> tuple[int, int, int]:
        """Of samples, channels and positions."""
        n, c, s = x.stride()
        return (0, c, n) if self.one_run else (n, c, s)

    def place(self, x: Tensor) -> tuple[int, ...]:
        """The address and the strides of x or of a tensor of its shape."""
        return (x.data_ptr(), *self.strides(x))

    def sizes(self) -> tuple[int, int]:
        return self.channels, self.positions if self.one_run else self.size

    def rest(self, by: By) -> tuple[int, ...]:
        """How positions are cut, and where given shares are."""
        return self.positions, self.tile, self.runs, by.data_ptr() if isinstance(by, Tensor) else 0

    def sums(self, rows: int, number: int) -> Tensor:
        return torch.zeros((rows, self.runs, number * self.channels), dtype=torch.float64)

    def run(self, name: str, tasks: int, *arguments: Any) -> None:
        """Call a loop over so many tasks, on as many cores as the size deserves."""
        zero, cores = ZEROS[self.x.dtype], min(threads.available(self.x.numel()), tasks)
        if cores == 0:
            getattr(loops, name)(zero, *arguments, 0, tasks)
            return
        with threads.turn():
            getattr(parallel, name)(zero, *arguments, tasks, cores)


def _table(x: Tensor, by: By, **rows: Tensor) -> Any:
    """The rows of a table, each (K, C), by their numbers in `mixture_blocks.py`."""
    if isinstance(by, Density):
        curve = by.precision * (-0.5 * LOG2_E)
        rows = {"constant": by.constant * LOG2_E, "mean": by.mean, "curve": curve, "precision": by.precision, **rows}
    number, channels = next(iter(rows.values())).shape[0], x.shape[1]
    table = torch.empty((blocks.ROWS, number, channels), dtype=x.dtype)
    for name, value in rows.items():
        table[getattr(blocks, name.upper())] = value
    return table.view(blocks.ROWS, -1).numpy(), number


def _like(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` as numbers of its own in the type of x."""
    return dy if dy.dtype == x.dtype and not dy.is_neg() and dy.data_ptr() else torch.empty_like(x).copy_(dy)


def shares(x: Tensor, density: Density, *, measures: bool = True, masked: bool = False) -> tuple[Tensor, Moments | None]:
    cut = _Cut(x)
    table, number = _table(x, density)
    found = torch.empty((number, x.shape[0], x.shape[2]), dtype=x.dtype)
    runs = math.ceil(cut.positions / POINTS)
    sums = torch.zeros((3, runs, number * cut.channels) if measures else (3, 1, 1), dtype=torch.float64)
    rest = (cut.positions, runs, masked, found.data_ptr(), measures, sums.numpy())
    cut.run("joint_shares", runs, *cut.place(x), *cut.sizes(), table, number, *rest)
    return found, _merged(sums, number).map(lambda t: t.to(x.dtype)) if measures else None


def _merged(sums: Tensor, number: int) -> Moments:
    """Those of all runs."""
    count, mean, var = sums.view(3, sums.shape[1], number, -1).unbind(0)
    return (Moments(mean, var, count).pool(0) if sums.shape[1] > 1 else Moments(mean, var, count)).map(lambda t: t[0])


def weighted_moments(x: Tensor, by: By, *, masked: bool = False) -> Moments:
    cut = _Cut(x)
    rows = {} if isinstance(by, Density) else {"constant": x.new_zeros((by.shape[0], x.shape[1]))}
    table, number = _table(x, by, **rows)
    sums = cut.sums(3, number)
    cut.run("moments", cut.tasks, *cut.place(x), *cut.sizes(), table, number, *cut.rest(by), masked, sums.numpy())
    return _merged(sums, number).map(lambda t: t.to(x.dtype))


def weighted_affine(x: Tensor, by: By, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    cut, y = _Cut(x), torch.empty_like(x)
    table, number = _table(x, by, center=center, scale=scale)
    levels = bias.to(x.dtype).expand(1, x.shape[1]).contiguous()
    place = (*cut.place(x), *cut.place(y), *cut.sizes())
    cut.run("affine", cut.tasks, *place, table, levels.data_ptr(), number, *cut.rest(by))
    return y


def weighted_grad_sums(dy: Tensor, x: Tensor, by: By, center: Tensor, *, masked: bool = False) -> Sums:
    cut, dy = _Cut(x), _like(dy, x)
    table, number = _table(x, by, center=center)
    sums = cut.sums(2, number)
    place = (*cut.place(dy), *cut.place(x), *cut.sizes())
    cut.run("grad_sums", cut.tasks, *place, table, number, *cut.rest(by), masked, sums.numpy())
    total, product = sums.sum(1).to(x.dtype).view(2, number, -1).unbind(0)
    return Sums(total, product)


def weighted_grad_input(
    dy: Tensor, x: Tensor, by: By, scale: Tensor, draw: Draw, *, through: bool, masked: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    cut, dy, dx = _Cut(x), _like(dy, x), torch.empty_like(x)
    through = through and isinstance(by, Density)
    own = {"center": draw.center, "offset": draw.offset, "slope": draw.slope, "pivot": draw.mean, "spread": draw.var}
    table, number = _table(x, by, scale=scale, **own)
    sums = cut.sums(3, number)
    place = (*cut.place(dy), *cut.place(x), *cut.place(dx), *cut.sizes())
    cut.run("grad_input", cut.tasks, *place, table, number, *cut.rest(by), masked, through, sums.numpy())
    if not through or not isinstance(by, Density):
        return dx, None
    whole, once, twice = sums.sum(1).to(x.dtype).view(3, number, -1).unbind(0)
    return dx, (whole, by.precision * once, -0.5 * twice)

"""The operations of mixtures on the GPU: from cut tensors to the kernels of `mixture_kernels.py`.

All samples share the tables of a mixture, so samples are folded into positions where strides allow it.
"""

from typing import Any

import torch
from torch import Tensor

from normsmith.kernels import Sums
from normsmith.kernels.cuda import launch, reduce
from normsmith.kernels.cuda import mixture_kernels as kernels
from normsmith.kernels.cuda.geometry import Splits, Tiles, fold_samples, power
from normsmith.kernels.mixtures import By, Density, Draw
from normsmith.kernels.reference import statistics_type
from normsmith.moments import Moments


def _placed(*tensors: Tensor) -> tuple[Any, ...]:
    """Each with its strides."""
    return tuple(item for t in tensors for item in (t, *t.stride()))


def _table(value: Tensor, number: int, channels: int) -> Tensor:
    """As the kernels read it: one number for each component and channel, one after the other."""
    return value.expand(number, channels).resolve_neg().contiguous()


def _shares_of(by: By, number: int, channels: int) -> tuple[Tensor | None, ...]:
    """The given shares, or the tables that tell them."""
    if isinstance(by, Tensor):
        return by.contiguous(), None, None, None
    return None, *(_table(t, number, channels) for t in by.tensors())


class _Work:
    """A cut tensor and others of its shape, folded, and how it is shared out among programs that know `number` components."""

    def __init__(self, number: int, *tensors: Tensor, held: int = 1) -> None:
        self.number, self.views = number, fold_samples(*tensors)
        self.x = self.views[-1]
        self.points, self.depth = self.x.shape[0] * self.x.shape[2], power(number)
        self.tiles = Tiles.of(self.x, self.depth * held)

    def constants(self) -> dict[str, Any]:
        return {**launch.constants(self.tiles, self.x), "BK": self.depth}

    def of(self, by: By, *tables: Tensor) -> tuple[Any, ...]:
        """The arguments of a kernel that say where elements are, what tells their shares, and what else there is of components."""
        channels = self.tiles.channels
        own = (_table(t, self.number, channels) for t in tables)
        return (*_placed(*self.views), *_shares_of(by, self.number, channels), *own)

    def launch(self, kernel: Any, splits: Splits, parts: Tensor | None, arguments: tuple[Any, ...], **more: Any) -> None:
        """A kernel over all tiles, which puts what it finds of the components into the parts, if anything."""
        sizes = (self.number, self.points, *launch.work_of(parts, self.tiles, splits))
        launch.launch(kernel, splits.number * self.tiles.blocks, self.x, *arguments, *sizes, **self.constants(), **more)

    def reduced(self, kernel: Any, merge: Any, layers: int, arguments: tuple[Any, ...], **more: Any) -> Tensor:
        """What a kernel finds of every component and channel, (layers, K, C)."""
        splits, channels = Splits.of(self.tiles, True), self.tiles.channels
        merged = torch.empty((layers, self.number, channels), dtype=statistics_type(self.x), device=self.x.device)
        parts = launch.parts_of(merged, self.number * channels, splits)
        self.launch(kernel, splits, parts, arguments, **more)
        return launch.merge_parts(merge, merged, parts, splits, **({"LAYERS": layers} if merge is reduce.merge_sums else {}))


def shares(x: Tensor, density: Density, *, measures: bool = True, masked: bool = False) -> tuple[Tensor, Moments | None]:
    x = launch.laid_out(x)
    number, channels = density.mean.shape
    (view,) = fold_samples(x)
    depth = power(number)
    tiles = Tiles.of(view, depth, points=True)
    found = torch.empty((number, x.shape[0], x.shape[2]), dtype=statistics_type(x), device=x.device)
    tables = (_table(density.constant, number, 1), *(_table(t, number, channels) for t in (density.mean, density.precision)))
    sizes = (number, view.shape[0] * view.shape[2], channels, tiles.size, tiles.along)
    more = {**launch.constants(tiles, view), "BK": depth, "MASKED": masked}
    launch.launch(kernels.joint_shares, tiles.samples * tiles.along, view, *_placed(view), *tables, found, *sizes, **more)
    return found, weighted_moments(x, found, masked=masked) if measures else None


def _components(by: By) -> int:
    return by.shape[0] if isinstance(by, Tensor) else by.mean.shape[0]


def weighted_moments(x: Tensor, by: By, *, masked: bool = False) -> Moments:
    work = _Work(_components(by), launch.laid_out(x))
    found = work.reduced(kernels.moments, reduce.merge_moments, 3, work.of(by), MASKED=masked)
    return Moments(*found.unbind())


def weighted_affine(x: Tensor, by: By, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    x = launch.laid_out(x)
    y = torch.empty_like(x)
    work = _Work(_components(by), x, y)
    tiles, level = work.tiles, _table(bias, 1, x.shape[1])
    sizes = (work.number, work.points, tiles.channels, tiles.size, tiles.along, tiles.blocks)
    programs = tiles.samples * tiles.blocks * tiles.along
    launch.launch(kernels.affine, programs, x, *work.of(by, center, scale), level, *sizes, **work.constants())
    return y


def weighted_grad_sums(dy: Tensor, x: Tensor, by: By, center: Tensor, *, masked: bool = False) -> Sums:
    x = launch.laid_out(x)
    work = _Work(_components(by), launch.like(dy, x), x)
    sums = work.reduced(kernels.grad_sums, reduce.merge_sums, 2, work.of(by, center), MASKED=masked)
    return Sums(*sums.unbind())


def weighted_grad_input(
    dy: Tensor, x: Tensor, by: By, scale: Tensor, draw: Draw, *, through: bool, masked: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    x = launch.laid_out(x)
    dx, through = torch.empty_like(x), through and isinstance(by, Density)
    work = _Work(_components(by), launch.like(dy, x), x, dx, held=2)
    arguments = work.of(by, scale, draw.center, draw.offset, draw.slope, draw.mean, draw.var)
    if not through:
        work.launch(kernels.grad_input, Splits.single(work.tiles), None, arguments, THROUGH=False, MASKED=masked)
        return dx, None
    first, second, third = work.reduced(
        kernels.grad_input, reduce.merge_sums, 3, arguments, THROUGH=True, MASKED=masked
    ).unbind()
    return dx, (first, second, third)

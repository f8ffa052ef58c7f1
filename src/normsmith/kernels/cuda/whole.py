"""Moments that wait until somebody asks for them: if nobody does, data are standardized with one read of x instead of two."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from normsmith.arithmetic import Arithmetic, AtOnce, Dims
from normsmith.cells import layout
from normsmith.kernels.cuda import chip, geometry, launch, reduce, small
from normsmith.kernels.cuda.geometry import Splits, power
from normsmith.kernels.reference import statistics_type
from normsmith.moments import Moments, Pooled, Share

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


class Untaken(Pooled):
    """Moments of the cells of a tensor, or of sets of their adjacent channels, taken when their values are first asked for."""

    _take: Callable[[], Moments] | None
    x: Tensor
    members: int

    def __init__(self, x: Tensor, members: int, take: Callable[[], Moments]) -> None:
        self._set(x=x, members=members, _take=take, count=members * x.shape[2], world=False, by=cast(Arithmetic, small))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Of the fields that are not there yet."""
        if name not in {"mean", "var"} or self._take is None:
            raise AttributeError(name)
        found = self._take()
        self._settle(found.mean, found.var, found.share if isinstance(found, Pooled) else None)
        return getattr(self, name)

    def _settle(self, mean: Tensor, var: Tensor, share: Share | None = None) -> None:
        """From now on they are taken, and x is of no more use."""
        self._set(mean=mean, var=var, share=share)
        self._forget()

    def _forget(self) -> None:
        self._set(_take=None)
        del self.__dict__["x"]

    def pool(self, dims: Dims) -> Moments:
        """As of any moments; over all channels it may wait too."""
        whole, channels = super().pool, self.channels
        return whole(dims) if channels is None or dims != 1 else Untaken(self.x, channels, lambda: whole(dims))

    def pool_groups(self, groups: int) -> Moments:
        """As of any moments; it may wait too."""
        whole, channels = super().pool_groups, self.channels
        return whole(groups) if channels is None else Untaken(self.x, channels // groups, lambda: whole(groups))

    @property
    def channels(self) -> int | None:
        """How many, of cells that nobody has asked for."""
        return self.x.shape[1] if self._take is not None and self.members == 1 else None

    def at_once(self, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool) -> AtOnce | None:
        """The data standardized, if nobody has asked for these moments and a program can hold them."""
        held = None if self._take is None else Held.of(self.x, self.members)
        if held is None or not all(t is None or _of_channels(t, self.x) for t in (weight, bias)):
            return None
        found = _Standardized(self.x, held, weight, bias, eps, centered)
        if held.whole:
            self._forget()
        else:
            self._settle(*found.moments)
        return found


def _of_channels(value: Tensor, x: Tensor) -> bool:
    """Whether a weight has a number for each channel, in a type that the kernels read."""
    readable = value.is_contiguous() and not value.is_neg() and value.is_floating_point()
    return value.shape == (x.shape[1],) and readable


def _as(value: Tensor | None, grad: Tensor) -> Tensor | None:
    """The gradient of a value, in its type."""
    return None if value is None else grad.to(value.dtype)


class _Standardized:
    """The output, and what a backward needs besides dy and x."""

    y: Tensor

    def __init__(self, x: Tensor, held: Held, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool) -> None:
        self.held, self.weight, self.bias, self.centered = held, weight, bias, centered
        samples, channels, size = x.shape
        sets = channels // held.members
        found = torch.empty((3, samples, sets), dtype=statistics_type(x), device=x.device)
        self.moments, self.mean, self.inverse = (found[0], found[1]), found[0], found[2]
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
        return d_x, _as(self.weight, d_weight), _as(self.bias, d_bias)


def cells_later(x: Tensor) -> Pooled:
    """The moments of cells, when somebody asks for them."""
    return Untaken(x, 1, lambda: small.cell_moments(x)) if Held.of(x, 1) or Held.of(x, x.shape[1]) else small.cell_moments(x)

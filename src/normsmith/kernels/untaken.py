"""Moments that wait until somebody asks for them: if nobody does, a backend standardizes data with one read of x instead of two."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from normsmith import arithmetic
from normsmith.arithmetic import Arithmetic, AtOnce, Bending, Dims, Pair, Towards
from normsmith.moments import Moments, Pooled
from normsmith.waiting import Few


class Whole(AtOnce, Protocol):
    """What a backend made without being given moments; those of the cells, if it found them on the way."""

    moments: Pair | None


class Standardize(Protocol):
    """A backend's way from x to its output, for sets of `members` adjacent channels of a sample; None where it has none for them."""

    def __call__(
        self, x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
    ) -> Whole | None: ...


class Untaken(Pooled):
    """Moments of the cells of a tensor, or of sets of adjacent ones, taken when their values are first asked for.

    A set is so many channels (`members`) of as many samples (`height`). A backend may have a way from x to its output for sets within
    a sample (`standardize`), and another, for small tensors, whatever is made of any sets of one tensor (`few`).
    """

    _standardize: Standardize | None
    _take_batch: Callable[[], Moments] | None
    _cells: "Untaken | None"  # of which the sets are, unless these are the cells
    x: Tensor
    members: int
    height: int
    shape: tuple[int, int]  # of their values: one for each set, or for each cell

    def __init__(
        self,
        x: Tensor,
        members: int,
        take: Callable[[], Moments],
        standardize: Standardize | None,
        by: Arithmetic = arithmetic,
        *,
        few: Few | None = None,
        height: int = 1,
        shape: tuple[int, int] | None = None,
        cells: "Untaken | None" = None,
        take_batch: Callable[[], Moments] | None = None,
    ) -> None:
        count = height * members * x.shape[2]
        self.__dict__.update(x=x, members=members, height=height, shape=shape or (x.shape[0], x.shape[1]), _cells=cells)
        self.__dict__.update(count=count, by=by, few=few, _take=take, _standardize=standardize)  # past the frozen dataclass
        self.__dict__["_take_batch"] = take_batch  # of x itself: the means of cells are rounded already

    def taken(self) -> None:
        """From now on x is of no more use."""
        values = self.__dict__
        values["_take"] = values["_take_batch"] = values["few"] = None
        values.pop("x", None)
        values.pop("_cells", None)

    def settle(self, take: Callable[[], Moments] | None) -> None:
        """From now on there is another way to find them, or none."""
        if self.waits:
            self.taken()
            self.__dict__["_take"] = take

    @property
    def cells(self) -> "Untaken":
        """Of which the sets are."""
        return self if self._cells is None else self._cells

    @property
    def waits(self) -> bool:
        """Whether nobody has asked for them."""
        return "x" in self.__dict__

    def pool(self, dims: Dims) -> Moments:
        """As of any moments; over all channels it may wait too, and over all samples where there is a way for that."""
        whole, is_cells = super().pool, self._is_cells
        samples, channels = self.shape
        if is_cells and dims == 1:
            return self._of_sets(1, channels, (samples, 1), lambda: whole(1))
        if is_cells and dims == 0 and self.few is not None:
            return self._of_sets(samples, 1, (1, channels), self._take_batch or (lambda: whole(0)))
        return whole(dims)

    def pool_groups(self, groups: int) -> Moments:
        """As of any moments; it may wait too."""
        whole = super().pool_groups
        if not self._is_cells:
            return whole(groups)
        return self._of_sets(1, self.shape[1] // groups, self.shape, lambda: whole(groups))

    def pool_runs(self, size: int) -> Moments:
        """As of any moments; it may wait too where there is a way for that."""
        whole = super().pool_runs
        if not self._is_cells or self.few is None or self.shape[0] % size:
            return whole(size)
        return self._of_sets(size, 1, self.shape, lambda: whole(size))

    def _of_sets(self, height: int, members: int, shape: tuple[int, int], take: Callable[[], Moments]) -> "Untaken":
        return Untaken(self.x, members, take, self._standardize, self.by, few=self.few, height=height, shape=shape, cells=self)

    @property
    def _is_cells(self) -> bool:
        """Whether they are the cells themselves, and nobody has asked for them."""
        return self.waits and self._cells is None

    def at_once(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        *,
        centered: bool,
        bend: Bending | None = None,
        towards: Towards | None = None,
    ) -> AtOnce | None:
        """The data standardized, if nobody has asked for these moments and the backend has a way."""
        if not self.waits:
            return None
        found = super().at_once(weight, bias, eps, centered=centered, bend=bend, towards=towards)
        if found is not None or bend is not None or towards is not None or self._standardize is None or self.height > 1:
            return found
        if not (_of_channels(weight, self.x) and _of_channels(bias, self.x)):
            return None
        whole = self._standardize(self.x, self.members, weight, bias, eps, centered=centered)
        if whole is not None:
            self.settle(None if whole.moments is None else partial(Pooled, *whole.moments, self.count))
        return whole


def _of_channels(value: Tensor | None, x: Tensor) -> bool:
    """Whether a weight, if there is one, has a number for each channel, in a type that kernels read."""
    if value is None:
        return True
    readable = value.is_contiguous() and not value.is_neg() and value.is_floating_point() and value.device == x.device
    return value.shape == (x.shape[1],) and readable


def in_type_of(value: Tensor | None, grad: Tensor) -> Tensor | None:
    """The gradient of a value, if there is one, in its type."""
    return None if value is None else grad if grad.dtype == value.dtype else grad.to(value.dtype)

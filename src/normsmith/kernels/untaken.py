"""Moments that wait until somebody asks for them: if nobody does, a backend standardizes data with one read of x instead of two."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from normsmith import arithmetic
from normsmith.arithmetic import Arithmetic, AtOnce, Dims, Pair
from normsmith.moments import Moments, Pooled, Share


class Whole(AtOnce, Protocol):
    """What a backend made without being given moments; those of the cells, if it found them on the way."""

    moments: Pair | None


class Standardize(Protocol):
    """A backend's way from x to its output, for sets of `members` adjacent channels of a sample; None where it has none for them."""

    def __call__(
        self, x: Tensor, members: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool
    ) -> Whole | None: ...


class Untaken(Pooled):
    """Moments of the cells of a tensor, or of sets of their adjacent channels, taken when their values are first asked for."""

    _take: Callable[[], Moments] | None
    _standardize: Standardize
    x: Tensor
    members: int

    def __init__(
        self, x: Tensor, members: int, take: Callable[[], Moments], standardize: Standardize, by: Arithmetic = arithmetic
    ) -> None:
        self._set(x=x, members=members, _take=take, _standardize=standardize, count=members * x.shape[2], world=False, by=by)

    def _set(self, **values: Any) -> None:
        self.__dict__.update(values)  # past the frozen dataclass

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
        return whole(dims) if channels is None or dims != 1 else self._of_sets(channels, lambda: whole(dims))

    def pool_groups(self, groups: int) -> Moments:
        """As of any moments; it may wait too."""
        whole, channels = super().pool_groups, self.channels
        return whole(groups) if channels is None else self._of_sets(channels // groups, lambda: whole(groups))

    def _of_sets(self, members: int, take: Callable[[], Moments]) -> "Untaken":
        return Untaken(self.x, members, take, self._standardize, self.by)

    @property
    def channels(self) -> int | None:
        """How many, of cells that nobody has asked for."""
        return self.x.shape[1] if self._take is not None and self.members == 1 else None

    def at_once(self, weight: Tensor | None, bias: Tensor | None, eps: float, *, centered: bool) -> AtOnce | None:
        """The data standardized, if nobody has asked for these moments and the backend has a way."""
        if self._take is None or not (_of_channels(weight, self.x) and _of_channels(bias, self.x)):
            return None
        found = self._standardize(self.x, self.members, weight, bias, eps, centered=centered)
        if found is None:
            return None
        if found.moments is None:
            self._forget()
        else:
            self._settle(*found.moments)
        return found


def _of_channels(value: Tensor | None, x: Tensor) -> bool:
    """Whether a weight, if there is one, has a number for each channel, in a type that kernels read."""
    if value is None:
        return True
    readable = value.is_contiguous() and not value.is_neg() and value.is_floating_point() and value.device == x.device
    return value.shape == (x.shape[1],) and readable


def in_type_of(value: Tensor | None, grad: Tensor) -> Tensor | None:
    """The gradient of a value, if there is one, in its type."""
    return None if value is None else grad if grad.dtype == value.dtype else grad.to(value.dtype)

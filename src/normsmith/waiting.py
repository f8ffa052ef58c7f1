"""Moments that wait: values that are found when somebody first asks for them, so that what nobody asks for is not computed."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from normsmith.arithmetic import AtOnce

# From moments that wait, weight, bias, eps, whether they are centered and what bends the output, to a backend's output for a small tensor;
# None where it has none for what these are made of.
Few = Callable[..., AtOnce | None]


class Waiting:
    """What has a mean, a variance and a count, or will have them."""

    few: ClassVar[Few | None] = None  # the way to do without values, as long as nobody has asked for them
    _take: ClassVar[Callable[[], "Waiting"] | None] = None

    @classmethod
    def later(cls, take: Callable[[], "Waiting"], **fields: Any) -> Self:
        """One that has these fields, and the values that it lacks from `take` when they are first asked for."""
        found = object.__new__(cls)
        found.__dict__.update(fields, _take=take)  # past a frozen dataclass
        return found

    def __getattr__(self, name: str) -> Any:
        """Of the values that are not there yet."""
        if name not in {"mean", "var", "count"} or self._take is None:
            raise AttributeError(name)
        found = vars(self._take())
        self.taken()
        self.__dict__.update({key: found[key] for key in ("mean", "var", "count", "share") if key in found})
        return self.__dict__[name]

    def taken(self) -> None:
        """From now on they do not wait."""
        self.__dict__.update(_take=None, few=None)

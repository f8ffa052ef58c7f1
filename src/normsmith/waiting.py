"""Moments that wait: values that are found when somebody first asks for them, so that what nobody asks for is not computed."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from normsmith.arithmetic import AtOnce

# A backend's way from moments that wait, and the other arguments of `Moments.at_once`, to its output for a small tensor; None where it has
# none for what these are made of.
Few = Callable[..., AtOnce | None]


class Waiting:
    """What has a mean, a variance and a count, or will have them."""

    few: ClassVar[Few | None] = None  # the way to do without values, as long as nobody has asked for them

    @classmethod
    def later(cls, take: Callable[[], "Waiting"], **fields: Any) -> Self:
        """One that has these fields, and the values that it lacks from `take` when they are first asked for."""
        found = object.__new__(cls)
        found.__dict__.update(fields, _take=take)  # past a frozen dataclass
        return found

    def __getattr__(self, name: str) -> Any:
        """Of the values that are not there yet."""
        take = vars(self).get("_take")
        if name not in {"mean", "var", "count"} or take is None:
            raise AttributeError(name)
        found = vars(take())
        self.taken()
        self.__dict__.update({key: found[key] for key in ("mean", "var", "count", "share", "shares") if key in found})
        return self.__dict__[name]

    def taken(self) -> None:
        """From now on they do not wait."""
        self.__dict__.update(_take=None, few=None)

"""What a reader gets and what it gives back."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from normsmith.data.catalog import Entry
from normsmith.data.dataset import Split, Task
from normsmith.errors import OptionError


@dataclass(frozen=True)
class Source:
    """What is to be read: the entry, the name as written without options, where, and the options."""

    entry: Entry
    name: str
    root: str | os.PathLike[str] | None
    options: dict[str, Any]

    def positive(self, option: str, default: int) -> int:
        """An option that is a positive integer."""
        value = self.options.get(option, default)
        if type(value) is not int or value < 1:
            raise OptionError(f"{self.name} expects {option} as a positive integer: got {value!r}")
        return value

    @property
    def checked(self) -> bool:
        """Whether published checksums must hold."""
        check = self.options.get("check", True)
        if type(check) is not bool:
            raise OptionError(f"{self.name} expects check as True or False: got {check!r}")
        return check


@dataclass(frozen=True, eq=False)
class Found:
    """What a reader found."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    task: Task = "classification"
    notes: tuple[str, ...] = ()


def without(name: str, missing: Sequence[str], what: str) -> tuple[str, ...]:
    """The note that some parts of a set are not there, or not used; none if there are none."""
    return (f"{name} without {', '.join(missing)}: not {what}",) if missing else ()

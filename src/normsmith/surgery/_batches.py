"""The batches of a loader, as many as wanted, with progress on a terminal."""

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from rich.console import Console
from torch import Tensor

from normsmith.errors import InputError, OptionError
from normsmith.surgery._console import follow


def check_loader(loader: Any, batches: int | None, verb: str, *, again: str = "") -> None:
    """Raise unless batches can be had from a loader, and once more if `again` says what for."""
    if batches is not None and (type(batches) is not int or batches < 1):
        raise OptionError(f"{verb} expects batches, how many to use, as a positive integer, or None for all: got {batches!r}")
    if isinstance(loader, Tensor):
        raise InputError(f"{verb} expects a loader that yields batches: got a tensor; pass [x] if it is one batch")
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise InputError(f"{verb} expects a loader that yields batches: got {type(loader).__name__}; pass a list of batches")
    if again and isinstance(loader, Iterator):
        raise InputError(
            f"{verb} with {again} goes through the loader many times: got an iterator; pass a list or a DataLoader"
        )


def batches_of(loader: Iterable[Any], batches: int | None, what: str) -> Iterator[Any]:
    """The first `batches` of a loader, or all."""
    total = len(loader) if isinstance(loader, Sized) else batches
    if total is not None and batches is not None:
        total = min(total, batches)
    return follow(itertools.islice(loader, batches), total, what, Console(stderr=True))

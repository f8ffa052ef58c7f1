"""What surgery shows: a table as text, and progress where there is a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normsmith.tables import as_text

__all__ = ["as_text", "follow"]

Item = TypeVar("Item")


def follow(items: Iterable[Item], total: int | None, what: str, console: Console) -> Iterator[Item]:
    """Pass the items on while showing how many are done: a bar on a terminal, nothing extra elsewhere."""
    if not console.is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)

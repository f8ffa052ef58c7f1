"""What surgery shows: a table as text, and progress where there is a terminal."""

import io
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")


def follow(items: Iterable[Item], total: int | None, what: str, console: Console) -> Iterator[Item]:
    """Pass the items on while showing how many are done: a bar on a terminal, nothing extra elsewhere."""
    if not console.is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)


def as_text(table: Table, width: int = 140) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()

"""A table as plain text."""

import io

from rich.console import Console
from rich.table import Table


def as_text(table: Table, width: int = 140) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()

"""`list` and `show`: the catalog of methods, and the card of one."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

import normsmith


def list_methods(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the methods of the catalog.

    Parameters
    ----------
    as_json
        Print the entries with all their traits as JSON.
    """
    entries = normsmith.catalog().values()
    if as_json:
        print(json.dumps([{**asdict(e), "invariances": sorted(e.invariances)} for e in entries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "class", "family", "what it is"):
        table.add_column(heading, no_wrap=heading != "what it is")
    for entry in entries:
        table.add_row(entry.name, f"ns.{entry.class_name}", entry.family, entry.summary)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def show(method: str) -> None:
    """Print the card of a method: formula, where it differs, cost, when it fails, reference.

    Parameters
    ----------
    method
        A name of the catalog, as `normsmith list` prints them.
    """
    from normsmith.methods.catalog import find

    entry = find(method)
    print(f"{entry.name}: ns.{entry.class_name}, family {entry.family}\n")
    print(entry.card())
    print(f"\nLeaves the output unchanged: {', '.join(sorted(entry.invariances)) or 'nothing'} of the input.")

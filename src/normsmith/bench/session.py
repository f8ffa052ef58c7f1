"""One call of `normsmith bench`: choose the subjects, measure, print, save."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from normsmith.bench import network as inside
from normsmith.bench import record, suite, tables
from normsmith.bench.subjects import LAYOUTS, MODES, SHAPES, parse_shape, subjects
from normsmith.errors import OptionError
from normsmith.kernels import choose
from normsmith.methods.catalog import catalog, find
from normsmith.surgery._console import follow

NETWORK_ROUNDS = 4  # for each round of the rest: a difference of two steps is noisier than a time


def _among(what: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for value in wanted or ():
        if value not in known:
            raise OptionError(f"bench expects {what} among {', '.join(known)}: got {value!r}")
    return list(wanted or known)


def run(
    *,
    methods: list[str] | None,
    shapes: list[str] | None,
    layouts: list[str] | None,
    modes: list[str] | None,
    rounds: int,
    backend: str,
    network: bool,
    oracles: Path,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure, print and save; rows are saved shape by shape, so that a kill loses one shape at most."""
    names = [find(name).name for name in methods] if methods else list(catalog())
    layouts, modes = _among("layouts", layouts, LAYOUTS), _among("modes", modes, MODES)
    backend = _among("a backend", [backend], choose.NAMES)[0]
    if rounds < 1:
        raise OptionError(f"bench expects at least one round: got {rounds}; try 11")
    sizes = [parse_shape(shape) for shape in shapes] if shapes else SHAPES
    console = Console(stderr=as_json)
    plan = subjects(names, sizes, layouts, modes)
    rows: list[suite.Row] = []
    unsaved: list[suite.Row] = []
    done = suite.run(plan, rounds, oracles if oracles.is_dir() else None, backend)
    for row in follow(done, len(plan), "measuring", console):
        if save and unsaved and unsaved[-1].shape != row.shape:
            record.append(save / "cpu.csv", unsaved)
            unsaved = []
        rows.append(row)
        unsaved.append(row)
        if not console.is_terminal:
            console.print("  ".join(tables.cells(row)), soft_wrap=True)
    if save and unsaved:
        record.append(save / "cpu.csv", unsaved)
    around = record.circumstances()
    title = f"{around['machine']}, torch {around['torch']}, allocator {around['allocator']}"
    if console.is_terminal:
        console.print(tables.table(rows, title))
    inner = [row for layout in layouts for row in inside.measure(names, NETWORK_ROUNDS * rounds, layout)] if network else []
    if inner:
        console.print(tables.network_table(inner))
        if save:
            record.append(save / "network.csv", inner)
    if as_json:
        print(json.dumps({**around, "rows": [asdict(r) for r in rows], "network": [asdict(r) for r in inner]}, indent=2))

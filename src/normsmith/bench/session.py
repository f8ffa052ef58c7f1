"""One call of `normsmith bench`: choose the subjects, measure, print, save."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from normsmith.bench import network as inside
from normsmith.bench import record, suite, tables
from normsmith.bench.subjects import DTYPES, GPU_SHAPES, LAYOUTS, MODES, SHAPES, parse_shape, subjects
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


def _device(wanted: str) -> str:
    """The device to measure on: a GPU where there is one, unless told."""
    there = torch.cuda.is_available()
    wanted = _among("a device", [wanted], ("auto", "cpu", "cuda"))[0]
    if wanted == "cuda" and not there:
        raise OptionError("bench expects an NVIDIA GPU for --device cuda: torch sees none; leave it out to measure on the CPU")
    return "cuda" if there and wanted != "cpu" else "cpu"


def run(
    *,
    methods: list[str] | None,
    shapes: list[str] | None,
    layouts: list[str] | None,
    modes: list[str] | None,
    rounds: int,
    backend: str,
    network: bool,
    device: str,
    dtypes: list[str] | None,
    oracles: Path,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure, print and save; rows are saved shape by shape, so that a kill loses one shape at most."""
    names = [find(name).name for name in methods] if methods else list(catalog())
    layouts, modes = _among("layouts", layouts, LAYOUTS), _among("modes", modes, MODES)
    backend = _among("a backend", [backend], choose.NAMES)[0]
    device = _device(device)
    kinds = _among("types", dtypes, tuple(DTYPES)) if dtypes else ["float32"] if device == "cpu" else ["float32", "bfloat16"]
    if rounds < 1:
        raise OptionError(f"bench expects at least one round: got {rounds}; try 11")
    sizes = [parse_shape(shape) for shape in shapes] if shapes else SHAPES if device == "cpu" else GPU_SHAPES
    console = Console(stderr=as_json)
    plan = subjects(names, sizes, layouts, modes, device, kinds)
    name = "cpu" if device == "cpu" else "gpu"
    rows: list[suite.Row] = []
    unsaved: list[suite.Row] = []
    done = suite.run(plan, rounds, oracles if oracles.is_dir() else None, backend)
    for row in follow(done, len(plan), "measuring", console):
        if save and unsaved and unsaved[-1].shape != row.shape:
            record.append(save / f"{name}.csv", unsaved, device)
            unsaved = []
        rows.append(row)
        unsaved.append(row)
        if not console.is_terminal:
            console.print("  ".join(tables.cells(row)), soft_wrap=True)
    if save and unsaved:
        record.append(save / f"{name}.csv", unsaved, device)
    around = record.circumstances(device)
    title = f"{around['machine']}, torch {around['torch']}, allocator {around['allocator']}"
    if console.is_terminal:
        console.print(tables.table(rows, title))
    inner = [row for layout in layouts if network for row in inside.measure(names, NETWORK_ROUNDS * rounds, layout, device)]
    if inner:
        console.print(tables.network_table(inner))
        if save:
            record.append(save / ("network.csv" if device == "cpu" else "gpu_network.csv"), inner, device)
    if as_json:
        print(json.dumps({**around, "rows": [asdict(r) for r in rows], "network": [asdict(r) for r in inner]}, indent=2))

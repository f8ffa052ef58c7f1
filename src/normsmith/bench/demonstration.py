"""`normsmith demo`: our layers beside torch's on a few shapes, checked and timed."""

import sys

import torch
from rich.console import Console
from rich.table import Table

from normsmith.bench import record
from normsmith.bench.subjects import Subject, contestants, subjects
from normsmith.bench.tables import number
from normsmith.bench.timing import interleave
from normsmith.methods.catalog import catalog, make
from normsmith.surgery._console import follow

SHAPES: list[tuple[int, ...]] = [(32, 64, 56, 56), (128, 256, 8, 8), (8, 64, 8, 8)]


def run(quick: bool = False) -> None:
    """Print one table: largest difference from torch's output, forward+backward times, and their ratio."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    plan = subjects(list(catalog()), SHAPES[2:] if quick else SHAPES, ["rows", "columns"], ["forward+backward"])
    table = Table(title="normsmith beside torch: forward and backward, time as a multiple (below 1 is faster)")
    for heading in ("method", "shape", "layout", "largest difference", "ms", "× torch's own", "× torch's batch norm"):
        table.add_column(heading, justify="left" if heading in {"method", "shape", "layout"} else "right", no_wrap=True)
    previous = None
    for subject in follow(plan, len(plan), "measuring", console):
        times = interleave(contestants(subject, None, "auto"), 5 if quick else 9)
        own = times.ratio("ours", "torch") if "torch" in times.seconds else None
        if previous and (subject.shape, subject.layout) != previous:
            table.add_section()
        previous = (subject.shape, subject.layout)
        table.add_row(
            subject.method,
            subject.shape_name,
            subject.layout,
            _difference(subject),
            number(times.median("ours") * 1e3, 3),
            number(own),
            number(times.ratio("ours", "batch")),
        )
    console.print(table, soft_wrap=not console.is_terminal)
    around = record.circumstances()
    console.print(f"{around['machine']}, torch {around['torch']}, float32, allocator {around['allocator']}")
    console.print("Next: normsmith list, normsmith show group, and in Python: import normsmith as ns; ns.make('group', 64)")


def _difference(subject: Subject) -> str:
    """The largest difference between our output and that of torch's layer in float64, on the same data and parameters."""
    x, layer = subject.example(), make(subject.method, subject.shape[1])
    twin = layer.torch_twin(len(subject.shape) - 2)
    if twin is None:
        return "torch has none"
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        return f"{(layer(x).double() - twin.double()(x.double())).abs().max():.0e}"

"""Rows on a terminal: a table where there is one, plain lines where there is not."""

from collections.abc import Sequence

from rich.table import Table

from normsmith.bench.network import NetworkRow
from normsmith.bench.suite import DeviceRow, Row

HEADINGS = ("method", "shape", "layout", "mode", "ms", "× batch norm", "× torch's own", "× formula", "copy speed", "memory")


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def cells(row: Row) -> tuple[str, ...]:
    """One row as text, in the order of the headings."""
    return (
        row.method,
        row.shape,
        row.layout,
        f"{row.mode}, {row.dtype}" if isinstance(row, DeviceRow) else row.mode,
        number(row.ms, 3),
        number(row.to_batch),
        number(row.to_torch),
        number(row.to_oracle),
        f"{row.copy_share:.0%}",
        f"{row.extra_memory:.1f} x",
    )


def table(rows: Sequence[Row], title: str) -> Table:
    """All rows; ratios are times as a multiple, so below 1 is faster."""
    found = Table(
        title=title, caption="× is time as a multiple, below 1 is faster; memory is the peak beyond x, in tensors of its size"
    )
    for index, heading in enumerate(HEADINGS):
        found.add_column(heading, justify="left" if index < 4 else "right", no_wrap=True)
    previous = None
    for row in rows:
        if previous and (row.shape, row.layout) != previous:
            found.add_section()
        previous = (row.shape, row.layout)
        found.add_row(*cells(row))
    return found


def network_table(rows: Sequence[NetworkRow]) -> Table:
    """The cost inside the network."""
    found = Table(title="cost inside a network: step of 4 × conv-norm-relu minus the step without the norm")
    for heading in ("method", "layout", "ms", "× batch norm", "95 % interval"):
        found.add_column(heading, justify="left" if heading in {"method", "layout"} else "right")
    for row in rows:
        found.add_row(row.method, row.layout, number(row.cost_ms, 1), number(row.to_batch), f"{row.low:.2f} to {row.high:.2f}")
    return found

"""A comparison as text: normalizers down, batch sizes across; for the terminal and as Markdown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from normsmith.comparison.costs import Cost
from normsmith.comparison.settings import titles
from normsmith.comparison.statistics import Difference, Entry, Statistics
from normsmith.comparison.words import points
from normsmith.surgery._console import as_text

_MOST_SEEDS = 6  # that fit in a cell
EXPLANATION = (
    "Accuracy in %: mean ± standard deviation over seeds, the difference to the baseline in points with its 95 % interval, every seed. "
    "* is clear of zero after correction for all differences (Holm); † has seeds missing, ‡ seeds that diverged."
)


@dataclass(frozen=True)
class Grid:
    """One table: a heading, and a row of cells for each normalizer; a cell is lines."""

    title: str
    headings: list[str]
    rows: list[list[list[str]]]


def accuracies(statistics: Statistics) -> list[Grid]:
    """One for each family of settings."""
    differences = {(d.setting, d.normalizer): d for d in statistics.differences}

    def cell(entry: Entry) -> list[str]:
        return _accuracy(entry, differences.get((entry.setting, entry.normalizer)), statistics.baseline)

    return _grids(statistics, cell, "")


def costs(statistics: Statistics) -> list[Grid]:
    """What it took, one for each family."""

    def cell(entry: Entry) -> list[str]:
        return _cost(entry.cost, len(entry.scores), beside=entry.normalizer != statistics.baseline)

    return _grids(statistics, cell, ": cost, and beside the baseline")


def wins(statistics: Statistics) -> Grid | None:
    """Wins, losses and ties by batch size, where some size has several settings."""
    found = statistics.wins()
    if all(w.wins + w.losses + w.ties < 2 for w in found):
        return None
    sizes, normalizers = (list(dict.fromkeys(getattr(w, name) for w in found)) for name in ("size", "normalizer"))
    by_place = {(w.normalizer, w.size): f"{w.wins} / {w.losses} / {w.ties}" for w in found}
    rows = [[[n], *([by_place.get((n, size), "")] for size in sizes)] for n in normalizers]
    title = f"settings won / lost / neither, against {statistics.baseline}"
    return Grid(title, ["", *(f"batch {size}" for size in sizes)], rows)


def seeds(statistics: Statistics) -> list[Grid]:
    """Every seed of every normalizer."""
    return _grids(
        statistics, lambda e: [f"{seed}: {100 * score:.2f}" for seed, score in e.scores.items()], ": every seed, in %"
    )


def _grids(statistics: Statistics, cell: Callable[[Entry], list[str]], what: str) -> list[Grid]:
    grids = []
    for family, title in titles(statistics.settings).items():
        settings = [s for s in statistics.settings if s.family == family]
        entries = {(e.normalizer, e.setting): e for e in statistics.entries if e.setting in settings}
        rows = []
        for name in _order(entries.values(), statistics.baseline):
            cells = [cell(entries[name, s]) if (name, s) in entries else [""] for s in settings]
            rows.append([[name], *cells])
        grids.append(Grid(title + what, ["", *(f"batch {s.size}" for s in settings)], rows))
    return grids


def _order(entries: Iterable[Entry], baseline: str) -> list[str]:
    """The baseline, then the best on average."""
    means: dict[str, list[float]] = {}
    for entry in entries:
        means.setdefault(entry.normalizer, []).append(entry.mean or 0.0)
    return sorted(means, key=lambda name: (name != baseline, -sum(means[name]) / len(means[name]), name))


def _accuracy(entry: Entry, difference: Difference | None, baseline: str) -> list[str]:
    if entry.mean is None:
        return ["no result"]
    marks = ("†" if entry.missing else "") + ("‡" if entry.diverged else "")
    deviation = "" if entry.deviation is None else f" ± {100 * entry.deviation:.1f}"
    lines = [f"{100 * entry.mean:.1f}{deviation}{marks}"]
    if difference is not None:
        lines.append(_difference(difference))
    elif entry.normalizer == baseline:
        lines.append("baseline")
    scores = [100 * score for score in entry.scores.values()]
    if len(scores) > _MOST_SEEDS:
        return [*lines, f"{min(scores):.1f} to {max(scores):.1f}"]
    return [*lines, " ".join(f"{score:.1f}" for score in scores)] if len(scores) > 1 else lines


def _difference(difference: Difference) -> str:
    text = points(difference.mean, unit=False)
    if difference.interval is not None:
        text += " ({} to {})".format(*(points(bound, unit=False) for bound in difference.interval))
    return text + (" *" if difference.clear else "")


def _cost(cost: Cost, seeds: int, *, beside: bool) -> list[str]:
    lines = []
    if cost.seconds_per_step is not None:
        lines.append(f"{1000 * cost.seconds_per_step:.3g} ms a step{_times(cost.seconds_ratio if beside else None)}")
    if cost.memory is not None:
        lines.append(f"{cost.memory / 2**20:.3g} MiB{_times(cost.memory_ratio if beside else None)}")
    if cost.reached is not None:
        when = "" if cost.seconds_to_target is None else f" in {cost.seconds_to_target:.3g} s"
        lines.append(f"target: {cost.reached} of {seeds}{when}")
    return lines or [""]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f", ×{ratio:.2f}"


def as_terminal(grid: Grid) -> str:
    """For a terminal, or a text file."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in grid.headings:
        table.add_column(Text(heading), no_wrap=True)
    for row in grid.rows:
        table.add_row(*(Text("\n".join(cell)) for cell in row))
    widths = [
        max(len(line) for row in grid.rows for line in [*row[place], grid.headings[place]])
        for place in range(len(grid.headings))
    ]
    text = as_text(table, width=max(40, sum(widths) + 2 * len(widths)))
    return "\n".join([grid.title, *("  " + line.rstrip() for line in text.splitlines())])


def as_markdown(grid: Grid) -> str:
    """For a Markdown file."""
    lines = [f"**{_escaped(grid.title)}**", "", _line(grid.headings), _line("---" for _ in grid.headings)]
    lines += [_line("<br>".join(_escaped(line) for line in cell) for cell in row) for row in grid.rows]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")

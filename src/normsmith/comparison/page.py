"""The page of a comparison: the verdict in words, then what it rests on, family of settings by family of settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from normsmith.comparison import page_about, tables
from normsmith.comparison.page_charts import Charts
from normsmith.comparison.page_data import Family, families
from normsmith.comparison.page_layers import Layers
from normsmith.comparison.settings import counted, group, titles
from normsmith.comparison.words import unbroken
from normsmith.report import Card, Entries, Entry, Grid, Heading, Key, Lines, Link, Links, Page, Section, Table, Text

if TYPE_CHECKING:
    from normsmith.comparison.comparison import Comparison

_ROWS = 16  # of a table, before a button
_BESIDE = 2  # batch sizes of a table that has room beside a chart
_CELL, _LOWEST, _HIGHEST = 69, 260, 460  # pixels of a cell of three lines, and of a chart beside a table of them

_COST = (
    "Medians over seeds; memory is what a forward keeps for its backward. In the charts a thin line reaches from the lowest to the highest "
    "seed, the dashed one joins those that no other is both cheaper and better than."
)
Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class _Part:
    """What there is under one heading, of one family."""

    title: str
    pieces: list[Any]
    note: str = ""


def page(comparison: "Comparison", links: Mapping[str, str], beside: Mapping[str, str]) -> Page:
    """The page, with links to other pages, and to files of the same report."""
    s = comparison.statistics
    groups, _ = group(comparison.results.trials)
    found = families(comparison.results, s, groups, titles(s.settings))
    sections = [Section("Verdict", _verdict(comparison, found, links, beside))]
    grids = zip(found, tables.accuracies(s), tables.costs(s), strict=True)
    parts = [(family, _parts(family, accuracy, cost)) for family, accuracy, cost in grids]
    if len(found) == 1:
        sections += [Section(part.title, part.pieces, part.note) for part in parts[0][1]]
    else:
        entries = [_entry(family, own, opened=at == 0) for at, (family, own) in enumerate(parts)]
        sections.append(Section("Settings", [Entries(entries, "settings", "Filter by data, model or option")]))
    failed = page_about.failures(comparison)
    sections += [Section("Failures", failed)] if failed else []
    about = [Grid([*page_about.recipe(comparison), *page_about.environment(comparison)], least=24)]
    sections += [Section("Recipe", about)]
    noted = page_about.notes(comparison)
    sections += [Section("Notes", noted)] if noted else []
    key = Key(found[0].palette.colours, "Normalizers, each in its colour: push one to see it in all charts")
    return Page(_title(comparison), sections, _subtitle(comparison), "Made by `normsmith compare`.", key)


def _title(comparison: "Comparison") -> str:
    name = (comparison.recipe or {}).get("name")
    return f"Comparison: {name}" if name and name != "comparison" else "Comparison of normalizers"


def _subtitle(comparison: "Comparison") -> str:
    s, statuses = comparison.statistics, [trial["status"] for trial in comparison.trials]
    names, seeds = ({e.normalizer for e in s.entries}, {seed for e in s.entries for seed in e.scores})
    wrong = [f"{statuses.count(what)} {what}" for what in ("diverged", "crashed") if what in statuses]
    parts = [counted(len(names), "normalizer"), counted(len(s.settings), "setting"), counted(len(seeds), "seed")]
    trials = counted(len(statuses), "trial") + (f", {' and '.join(wrong)}" if wrong else "")
    return f"{', '.join(parts)}: {trials}. Baseline: {s.baseline}."


def _verdict(comparison: "Comparison", found: list[Family], links: Mapping[str, str], beside: Mapping[str, str]) -> list[Any]:
    first, _, rest = comparison.verdict[0].partition(". ")
    said = [f"{first.removesuffix('.')}.", *([rest] if rest else []), *comparison.verdict[1:]]
    pieces: list[Any] = [Text(_typeset("\n\n".join(said)), leading=True)]
    if links:
        pieces.append(Links("Pages beside this one", [Link(text, url=address) for text, address in links.items()]))
    if beside:
        pieces.append(Links("The same as data", [Link(text, url=address) for text, address in beside.items()]))
    by_setting = {verdict.setting: verdict for verdict in comparison.verdicts}
    if len(found) == 1 and len(by_setting) > 1:
        cards = [Card(_headline(v.setting.size, v.winner), [Text(_typeset(v.text))]) for v in by_setting.values()]
        pieces.append(Grid(cards, least=24))
    elif len(found) > 1:
        rows = []
        for family in found:
            for place in family.places:
                verdict = by_setting[place.setting]
                best = place.ranked[0] if place.ranked else None
                rows.append(
                    [
                        Link(family.title, to=family.title),
                        place.setting.size,
                        Lines([best.normalizer, f"{100 * (best.mean or 0):.1f} %"]) if best else "",
                        verdict.winner or "none",
                        ", ".join(verdict.better),
                        ", ".join(verdict.worse),
                    ]
                )
        baseline = comparison.statistics.baseline
        headings = ["setting", "batch", "highest mean", "winner", f"clearly better than {baseline}", "clearly worse"]
        pieces.append(Table(headings, rows, shown=_ROWS))
    wins = tables.wins(comparison.statistics)
    if wins:
        pieces.append(Table(wins.headings, [[row[0][0], *map(Lines, row[1:])] for row in wins.rows], wins.title, shown=_ROWS))
    return pieces


def _typeset(text: str) -> str:
    """With units on the line of their number, and a minus as wide as a plus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", unbroken(text))


def _headline(size: str, winner: str | None) -> str:
    return f"Batch {size}: {winner} wins" if winner else f"Batch {size}: no winner"


def _entry(family: Family, parts: list[_Part], *, opened: bool) -> Entry:
    pieces = [piece for part in parts for piece in (Heading(part.title, part.note), *part.pieces)]
    sizes = ", ".join(place.setting.size for place in family.places)
    return Entry(family.title, pieces, kind=f"batch {sizes}", opened=opened)


def _parts(family: Family, accuracy: tables.Grid, cost: tables.Grid) -> list[_Part]:
    """Everything on a family, by heading; what there is nothing of has none."""
    charts, layers = Charts(family), Layers(family)
    parts = [
        _Part("Accuracy", _accuracy(accuracy, family, charts), tables.EXPLANATION),
        _Part("Ranking", charts.rankings()),
        _Part(
            "Seeds",
            charts.pairs(),
            "The same seed gives all the same first weights, where they have the same shape, and order of batches.",
        ),
        _Part("Learning", charts.curves(), "Mean over seeds; the band reaches from the lowest to the highest seed."),
        _Part("Cost", _cost(cost, family, charts), _COST),
        _Part(
            "Layers",
            [*layers.shares(), *layers.gains(), *layers.moments()],
            "Recorded at the end of every epoch, mean over seeds.",
        ),
    ]
    return [part for part in parts if part.pieces]


def _accuracy(grid: tables.Grid, family: Family, charts: Charts) -> list[Any]:
    """The table, and accuracy versus batch size: beside each other where there is room."""
    tones: dict[tuple[str, int], Tone] = {}
    for at, place in enumerate(family.places, 1):
        for name, d in place.differences.items():
            if d.clear:
                tones[name, at] = "good" if d.mean > 0 else "bad"
    table, beside = _table(grid, tones), len(family.places) <= _BESIDE
    drawn = charts.by_batch(min(max(_CELL * len(grid.rows) - 60, _LOWEST), _HIGHEST) if beside else _LOWEST)
    return [Grid([table, *drawn], least=27)] if drawn and beside else [table, *drawn]


def _cost(grid: tables.Grid, family: Family, charts: Charts) -> list[Any]:
    table, targets = _table(grid, {}), charts.targets()
    beside = targets and len(family.places) <= _BESIDE
    return [*([Grid([table, *targets], least=27)] if beside else [table, *targets]), *charts.costs()]


def _table(grid: tables.Grid, tones: Mapping[tuple[str, int], Tone]) -> Table:
    """Normalizers by batch size; a cell's second line has the tone of what it says."""
    rows = [
        [
            row[0][0],
            *(Lines([_typeset(line) for line in cell], tones.get((row[0][0], at), "")) for at, cell in enumerate(row[1:], 1)),
        ]
        for row in grid.rows
    ]
    return Table(["normalizer", *grid.headings[1:]], rows, shown=_ROWS)

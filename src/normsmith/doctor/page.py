"""The page of an examination: findings, a map of the network, and what was measured in every layer."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normsmith.doctor import channel_pictures, page_charts
from normsmith.doctor.finding import SEVERITIES, Finding
from normsmith.errors import OptionError
from normsmith.report import (
    Card,
    Cell,
    Code,
    Entries,
    Entry,
    Grid,
    Group,
    Level,
    Link,
    Links,
    Map,
    Page,
    Picture,
    Section,
    Table,
    Text,
)

if TYPE_CHECKING:
    from normsmith.doctor.examination import Examination

GROUPS = 12  # on the map
BESIDE = 66  # characters of a table that has room beside a text
COLUMNS, COLUMNS_ALL = 256, 60_000  # of a heat map, and of all of them: that 300 layers stay small
_FACTS = {"gap": "gap", "noise": "noise", "excess kurtosis": "kurtosis"}
_WHOLE = "(the model)"

Pictures = Mapping[str, Sequence[Picture]]


def page(exam: "Examination", asked: Mapping[str, int]) -> Page:
    """The page, with pictures of the channels asked for."""
    pictures = channel_pictures.pictures(exam.subject.model, exam.images, _known(exam, asked))
    worst = {row["layer"]: _worst(exam.findings, row["layer"]) for row in exam.table}
    counts = [(severity, sum(f.severity == severity for f in exam.findings)) for severity in reversed(SEVERITIES)]
    verdict = ", ".join(_count(number, severity) for severity, number in counts if number)
    sections = [
        Section("Findings", [_card(finding) for finding in exam.findings] or [Text("Nothing was found.")], _verdict(exam)),
        Section(
            "Network", _network(exam, worst), "The normalizers in the order of the model, coloured by their worst finding."
        ),
        Section("Layers", [Entries(list(_entries(exam, worst, pictures)), "layers")]),
    ]
    if exam.missing:
        sections.append(Section("Not looked at", [Text("\n\n".join(exam.missing))]))
    about = (
        f"{_count(len(exam.table), 'normalizer')}, {_count(exam.batches, 'batch', 'batches')}, {_count(exam.samples, 'sample')}"
    )
    return Page(exam.model, sections, f"{about}; {verdict or 'nothing found'}.", "Made by `normsmith examine`.")


def _known(exam: "Examination", asked: Mapping[str, int]) -> Mapping[str, int]:
    names = [row["layer"] for row in exam.table]
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            raise OptionError(
                f"save expects pictures={{layer: channel}} of layers that were examined: got {name!r}"
                f"{'; did you mean ' + ' or '.join(map(repr, near)) + '?' if near else ''}"
            )
    return asked


def _verdict(exam: "Examination") -> str:
    return "" if exam.at_least("warning") else "Nothing that needs a cure."


def _count(number: int, one: str, many: str = "") -> str:
    if one == "info":
        return f"{number}\u00a0for\u00a0information"
    return f"{number}\u00a0{one}" if number == 1 else f"{number}\u00a0{many or one + 's'}"


def _of(findings: Sequence[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if name in finding.layers]


def _worst(findings: Sequence[Finding], name: str) -> Level:
    return max((f.severity for f in _of(findings, name)), key=SEVERITIES.index, default="")


def _card(finding: Finding) -> Card:
    keys = list(dict.fromkeys(key for numbers in finding.evidence.values() for key in numbers))
    rows = [
        [Link(name or _WHOLE, to=name or _WHOLE), *(finding.evidence.get(name, {}).get(key) for key in keys)]
        for name in finding.layers
    ]
    evidence = [Text(finding.explanation), Table(["layer", *keys], rows, shown=6)]
    width = max(map(len, finding.layers), default=0) + sum(max(len(key), 6) + 4 for key in keys)
    pieces: list[Any] = [*([Grid(evidence, least=24)] if width <= BESIDE else evidence), Code(finding.cure, "cure")]
    if finding.see:
        pieces.append(Links("see", [_reference(text) for text in finding.see]))
    title = finding.title[0].upper() + finding.title[1:]
    return Card(title, pieces, finding.severity, finding.code, _count(len(finding.layers), "layer"))


def _reference(text: str) -> Link:
    found = re.fullmatch(r"arXiv ([\w./-]+)", text)
    return Link(text, url=f"https://arxiv.org/abs/{found[1]}" if found else "")


def _network(exam: "Examination", worst: Mapping[str, Level]) -> list[Any]:
    cells: dict[str, list[Cell]] = {}
    names = [row["layer"] for row in exam.table]
    depth = _depth(names)
    for name in names:
        codes = ", ".join(f.code for f in _of(exam.findings, name))
        cells.setdefault(_part(name, depth), []).append(Cell(name or _WHOLE, worst[name], codes))
    groups = [Group(part, inside) for part, inside in cells.items()]
    charts = page_charts.across(exam.table, worst)
    return [Map(groups), *([Grid(charts, least=18)] if charts else [])]


def _part(name: str, depth: int) -> str:
    """The first components of a name, without its last."""
    return ".".join(name.split(".")[:-1][:depth]) or "model"


def _depth(names: Sequence[str]) -> int:
    """How many components tell parts of the network apart, so that there are some and not too many."""
    longest = max((name.count(".") for name in names), default=0)
    fitting = [
        depth for depth in range(1, longest + 1) if len({_part(name, depth) for name in names}) <= min(GROUPS, len(names) // 2)
    ]
    return max(fitting, default=1)


def _entries(exam: "Examination", worst: Mapping[str, Level], pictures: Pictures) -> Iterator[Entry]:
    views = {view.name: view for view in exam.views}
    by_severity = sorted(exam.views, key=lambda view: -SEVERITIES.index(worst[view.name] or "info"))
    album = page_charts.album_of(by_severity)
    columns = max(32, min(COLUMNS, COLUMNS_ALL // max(len(exam.table), 1)))
    for row in exam.table:
        name, view = row["layer"], views.get(row["layer"])
        kind = f"{row['kind']}, {row['channels']} channels" if row["channels"] else row["kind"]
        found = _of(exam.findings, name)
        pieces = _found_here(name, found)
        pieces += page_charts.of_layer(view, columns, album) if view is not None else []
        pieces += [Grid(shown, least=16) for shown in [pictures.get(name, ())] if shown]
        facts = [(short, row[key]) for key, short in _FACTS.items() if row.get(key) is not None]
        yield Entry(
            name or _WHOLE, pieces or [Text("No batch reached this layer.")], worst[name], kind, facts, [f.code for f in found]
        )


def _found_here(name: str, found: Sequence[Finding]) -> list[Any]:
    rows = [
        [
            Link(f.code, to=f.code),
            f.title,
            ", ".join(f"{key} {_short(value)}" for key, value in f.evidence.get(name, {}).items()),
        ]
        for f in found
    ]
    return [Table(["found here", "what", "evidence"], rows)] if rows else []


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"

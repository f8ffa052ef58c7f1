"""What a page is made of: plain records, each drawn by the template of its name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Level = Literal["", "info", "warning", "error"]


@dataclass(frozen=True)
class Text:
    """Paragraphs, parted by empty lines; what stands between backticks is code."""

    text: str


@dataclass(frozen=True)
class Code:
    """A line of code with a button that copies it."""

    code: str
    label: str = ""


@dataclass(frozen=True)
class Link:
    """A way to an entry or section of this page, by its name, or to an address of the web; plain text where there is no such entry."""

    text: str
    to: str = ""
    url: str = ""


@dataclass(frozen=True)
class Links:
    """Several links in a line."""

    label: str
    links: Sequence[Link]


@dataclass(frozen=True)
class Facts:
    """A few numbers with what they are."""

    facts: Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers stand at the right. Rows beyond `shown` come at the push of a button."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    shown: int = 8


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows in words; `pixelated` for small ones that are drawn large. The same on one page is kept once."""

    png: bytes
    words: str
    caption: str = ""
    pixelated: bool = True


@dataclass(frozen=True)
class Grid:
    """Pieces beside each other where there is room; at least `least` wide each, in rem."""

    pieces: Sequence[Any]
    least: int = 22
    title: str = ""


@dataclass(frozen=True)
class Card:
    """A statement of some weight, with what belongs to it."""

    title: str
    pieces: Sequence[Any] = ()
    level: Level = ""
    code: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A square on a map, which leads to the entry of that name."""

    name: str
    level: Level = ""
    words: str = ""


@dataclass(frozen=True)
class Group:
    """Neighbouring squares with a name."""

    name: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Map:
    """All entries at a glance."""

    groups: Sequence[Group]


@dataclass(frozen=True)
class Entry:
    """A row that opens: its name, some numbers, and the pieces inside, drawn when it is opened."""

    name: str
    pieces: Sequence[Any]
    level: Level = ""
    kind: str = ""
    facts: Sequence[tuple[str, Any]] = ()
    codes: Sequence[str] = ()


@dataclass(frozen=True)
class Entries:
    """Rows that open, with a filter by name and by level."""

    entries: Sequence[Entry]
    noun: str = "entries"


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    pieces: Sequence[Any]
    note: str = ""


def within(piece: Any, kind: type) -> Iterator[Any]:
    """All pieces of a kind inside a piece, itself included."""
    if isinstance(piece, kind):
        yield piece
    if is_dataclass(piece):
        for field in fields(piece):
            value = getattr(piece, field.name)
            if isinstance(value, tuple | list):
                for item in value:
                    yield from within(item, kind)


def number(value: Any) -> str:
    """A value as a page shows it: three digits of a fraction, whole numbers in full, a dash for nothing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value == int(value) if abs(value) < 1e5 else False):
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value)).replace("-", "\u2212")
    return f"{value:.3g}".replace("-", "\u2212")

"""`Page`: pieces as one HTML file, with its style sheet, its scripts and its numbers inside."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from normsmith.errors import DependencyError, InputError
from normsmith.report.charts import Chart, Heatmap, Store, vega
from normsmith.report.pieces import Card, Entry, Key, Section, number, within
from normsmith.writing import write_whole

_STATIC = resources.files("normsmith.report") / "static"


@dataclass(frozen=True)
class Page:
    """A report: `html()` is all of it, `save(path)` writes it whole or not at all."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    footer: str = ""
    key: Key | None = None

    def html(self) -> str:
        """The page; it asks nothing of a network."""
        return _Writer(self).html()

    def save(self, path: str | Path) -> Path:
        """Write the page."""
        path = Path(path)
        text = self.html()
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
        return path


class _Writer:
    """One rendering: where entries are to be found, and the store of what scripts draw."""

    def __init__(self, page: Page) -> None:
        try:
            import jinja2  # noqa: PLC0415  (optional)
            import markupsafe  # noqa: PLC0415  (of Jinja)
        except ImportError:
            raise DependencyError("a page expects jinja2: pip install 'normsmith[report]'") from None
        self.page, self.store = page, Store()
        self.environment = jinja2.Environment(
            autoescape=True,
            loader=jinja2.PackageLoader("normsmith.report"),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self.environment.tests["a_number"] = _is_number
        self.environment.filters.update(number=number, prose=self._prose)
        self._mark = markupsafe.Markup
        self._escape = markupsafe.escape
        entries = [entry.name for section in page.sections for entry in within(section, Entry)]
        if len(set(entries)) < len(entries):
            twice = next(name for name in entries if entries.count(name) > 1)
            raise InputError(f"a page expects entries of different names: got {twice!r} twice; number them")
        taken: set[str] = set()
        self._sections = {section.title: _slug(section.title, "", taken) for section in page.sections}
        self._cards: dict[str, Card] = {}
        for card in (card for section in page.sections for card in within(section, Card) if card.code):
            self._cards.setdefault(card.code, card)
        self._codes = {code: _slug(code, "", taken) for code in self._cards}
        self._entries = {name: _slug(name, "at-", taken) for name in entries}
        self.environment.globals.update(
            render=self.render,
            anchor=self.anchor,
            sections=self._sections,
            cards=self._cards,
            chart=self.store.chart,
            heatmap=self.store.heatmap,
            picture=self.store.picture,
        )

    def anchor(self, name: str) -> str:
        """The id of an entry, or else of a card by its code, or of a section; empty if there is none."""
        return self._entries.get(name) or self._codes.get(name) or self._sections.get(name, "")

    def render(self, piece: Any) -> Any:
        """A piece by the template of its name."""
        template = self.environment.get_template(f"{type(piece).__name__.lower()}.html")
        return self._mark(template.render(piece=piece))

    def _prose(self, text: str) -> Any:
        """Escaped, with code between backticks marked as such."""
        return self._mark(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(self._escape(text))))

    def html(self) -> str:
        draws = any(next(within(section, kind), None) for section in self.page.sections for kind in (Chart, Heatmap))
        static = {
            name.replace(".", "_"): (_STATIC / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "draw.js")
        }
        body = [self.render(section) for section in self.page.sections]  # before the store is read
        safe = {key: self._mark(text) for key, text in static.items()}
        return str(
            self.environment.get_template("page.html").render(
                page=self.page,
                body=body,
                data=self._mark(self.store.json()),
                pictures=self._mark(self.store.pictures()),
                vega=self._mark(vega()) if draws else "",
                **safe,
            )
        )


def _slug(name: str, prefix: str, taken: set[str]) -> str:
    """An id that no other element has."""
    slug = prefix + (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-").lower() or "it")
    while slug in taken:
        slug += "-"
    taken.add(slug)
    return slug


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

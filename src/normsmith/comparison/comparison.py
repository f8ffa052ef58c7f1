"""`Comparison`: what came of trials: tables and a verdict as text, everything as data, and files of it."""

import csv
import io
import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import polars as pl

from normsmith.comparison import tables
from normsmith.comparison.results import Results, load
from normsmith.comparison.settings import titles
from normsmith.comparison.statistics import Difference, Entry, Statistics, judge, plain
from normsmith.comparison.words import Verdict, summary, unbroken, verdicts
from normsmith.errors import OptionError, ResultsError
from normsmith.trials.files import Folder, write_whole
from normsmith.trials.labels import label_of

SCHEMA = 1
_WIDTH = 110
_SETTING = ("dataset", "model", "optimizer", "learning_rate", "epochs", "steps", "statistics_batch", "batch")


@dataclass(frozen=True, eq=False)
class Comparison:
    """The trials of some folders, what they say, and the recipe they were last run from, if it is known."""

    results: Results
    statistics: Statistics
    recipe: dict[str, Any] | None

    @classmethod
    def load(cls, *folders: str | Path, baseline: str | None = None, only: Collection[str] | None = None) -> "Comparison":
        """Of folders that `compare` filled; `baseline`: the normalizer that others are compared with; `only`: these identities."""
        if not folders:
            raise OptionError("report expects one folder of results or more: got none")
        results = load(*folders, only=only)
        labels = results.trials.filter(~pl.col("searching").fill_null(value=False))["normalizer"].to_list()
        if not labels:
            where = ", ".join(repr(str(folder)) for folder in folders)
            why = f" ({'; '.join(results.notes)})" if results.notes else ""
            raise ResultsError(
                f"at least one finished trial is expected: got none in {where}{why}; normsmith compare runs some"
            )
        recipe = next((found for folder in folders if (found := Folder(folder).recipe())), None)
        return cls(results, judge(results.trials, _baseline(baseline, labels, recipe)), recipe)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, or counts although it went wrong."""
        return (*self.results.notes, *self.statistics.notes)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each setting."""
        return tuple(verdicts(self.statistics))

    @cached_property
    def verdict(self) -> tuple[str, ...]:
        """Sentences on everything."""
        return tuple(summary(self.statistics))

    @cached_property
    def table(self) -> tuple[dict[str, Any], ...]:
        """Plain records, one for each normalizer in each setting."""
        differences = {(d.setting, d.normalizer): d for d in self.statistics.differences}
        return tuple(_record(e, differences.get((e.setting, e.normalizer))) for e in self.statistics.entries)

    @cached_property
    def trials(self) -> tuple[dict[str, Any], ...]:
        """Plain records, one for each trial, those of a search of learning rates left out; `results.trials` is a data frame."""
        return tuple(self._trials(searching=False))

    def to_pandas(self) -> Any:
        """The table as a pandas data frame; needs pandas."""
        import pandas  # noqa: PLC0415  (optional)

        return pandas.DataFrame(list(self.table))

    def to_polars(self) -> pl.DataFrame:
        """The table as a polars data frame."""
        return pl.DataFrame(list(self.table), infer_schema_length=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        found = plain(
            {
                "schema": SCHEMA,
                "recipe": self.recipe,
                "baseline": self.statistics.baseline,
                "trials": self.trials,
                "searched": self._trials(searching=True),
                "settings": [
                    dict(zip(("ranking", "differences"), self.statistics.of(v.setting), strict=True)) | {"verdict": v}
                    for v in self.verdicts
                ],
                "small_batches": self.statistics.falls,
                "wins": self.statistics.wins(),
                "verdict": self.verdict,
                "notes": self.notes,
            }
        )
        assert isinstance(found, dict)
        return found

    def _trials(self, *, searching: bool) -> list[dict[str, Any]]:
        known = self.results.manifests.items()
        return [_trial(identity, of) for identity, of in known if bool(of["trial"].get("searching")) == searching]

    def save(self, path: str | Path, *, links: Mapping[str, str] | None = None) -> Path:
        """Write a report, whole or not at all: `.html` a page that needs no network, `.json` everything, `.md` and `.txt` what is
        printed, `.csv` the table.

        A page leads to the others of these that lie beside it under the same name, and to those of `links`, addresses by their text:
        `{"examination of the best model": "examine-best.html"}`.
        """
        path = Path(path)
        kinds = {".json": self._json, ".md": self.to_markdown, ".csv": self._csv, ".txt": self.__str__}
        if path.suffix not in (*kinds, ".html"):
            raise OptionError(f"save expects a path that ends in .html, {', '.join(kinds)}: got {path.name!r}")
        if links and path.suffix != ".html":
            raise OptionError(f"save expects links with a path that ends in .html: got {path.name!r}")
        text = self._html(path, list(kinds), links or {}) if path.suffix == ".html" else kinds[path.suffix]().rstrip() + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
        return path

    def _html(self, path: Path, kinds: list[str], links: Mapping[str, str]) -> str:
        from normsmith.comparison.page import page  # noqa: PLC0415  (templates and charts, for who wants a page)

        for address in links.values():
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                raise OptionError(f"save expects links to pages beside the report, such as 'examine.html': got {address!r}")
        beside = [path.with_suffix(kind).name for kind in kinds if path.with_suffix(kind).exists()]
        return page(self, links, {name: quote(name) for name in beside}).html()

    def _json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The report as Markdown, with every seed."""
        s = self.statistics
        grids = [*tables.accuracies(s), *tables.costs(s), *(g for g in (tables.wins(s),) if g), *tables.seeds(s)]
        lines = ["# Comparison", "", *(f"- {line}" for line in self.verdict), ""]
        if len(self.verdicts) > 1:
            lines += ["## By setting", "", *(f"- {line}" for line in self._by_setting()), ""]
        lines += ["## Tables", "", tables.EXPLANATION.replace("*", "\\*"), ""]
        lines += [line for grid in grids for line in (tables.as_markdown(grid), "")]
        if self.notes:
            lines += ["## Notes", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)

    def __str__(self) -> str:
        s = self.statistics
        parts = [
            tables.as_terminal(grid) for grid in (*tables.accuracies(s), *tables.costs(s), *(g for g in (tables.wins(s),) if g))
        ]
        parts.insert(len(tables.accuracies(s)), _wrapped(tables.EXPLANATION))
        if len(self.verdicts) > 1:
            parts.append("\n".join(_wrapped(line) for line in self._by_setting()))
        parts.append("\n".join(_wrapped(line) for line in self.verdict))
        if self.notes:
            parts.append("\n".join(_wrapped(f"note: {note}") for note in self.notes))
        return "\n\n".join(parts)

    def _by_setting(self) -> list[str]:
        names = titles(self.statistics.settings)
        return [f"{names[v.setting.family]}, batch {v.setting.size}: {v.text}" for v in self.verdicts]


def _wrapped(text: str) -> str:
    filled = textwrap.fill(unbroken(text), _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return filled.replace("\u00a0", " ")


def _baseline(wanted: str | None, labels: list[str], recipe: dict[str, Any] | None) -> str:
    """The one that was asked for, or that of the recipe, or batch norm, or what there is most of."""
    known = sorted(set(labels), key=lambda label: (-labels.count(label), label))
    if wanted is not None:
        if wanted not in known:
            raise OptionError(f"report expects baseline among the normalizers {', '.join(sorted(known))}: got {wanted!r}")
        return wanted
    named = None
    if recipe is not None and recipe.get("normalizers"):
        first = (recipe.get(key, [None])[0] for key in ("normalizers", "reparametrize", "normalize_gradients"))
        named = recipe.get("baseline") or label_of(*first)
    return next(label for label in (named, "batch", *known) if label in known)


def _trial(identity: str, manifest: dict[str, Any]) -> dict[str, Any]:
    head = {"identity": identity, "status": manifest["status"], "accuracy": manifest.get("accuracy")}
    rest = ("parameters", "memory", "error", "traceback", "environment", "started", "ended", "notes")
    known = {name: manifest[name] for name in rest if name in manifest}
    timing = {name.replace(" ", "_"): value for name, value in manifest.get("timing", {}).items()}
    return {**head, **manifest["trial"], "steps_done": manifest.get("steps"), "timing": timing, **known}


def _record(e: Entry, d: Difference | None) -> dict[str, Any]:
    """A flat one of an entry and its difference to the baseline."""
    return {
        **{name: getattr(e.setting, name) for name in _SETTING},
        "normalizer": e.normalizer,
        "seeds": len(e.scores),
        "mean": e.mean,
        "deviation": e.deviation,
        **_bounds("mean", e.interval),
        "rank": e.rank,
        "best_rank": e.ranks and e.ranks[0],
        "worst_rank": e.ranks and e.ranks[1],
        "difference": d and d.mean,
        **_bounds("difference", d.interval if d else None),
        **_bounds("bootstrap", d.bootstrap if d else None),
        "p": d and d.p,
        "corrected_p": d and d.corrected,
        "clear": d and d.clear,
        "detectable": d and d.detectable,
        "seeds_needed": d and d.needed,
        **plain(e.cost),
        "diverged": len(e.diverged),
        "missing": len(e.missing),
        "accuracies": " ".join(f"{seed}:{score:.6g}" for seed, score in e.scores.items()),
    }


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}

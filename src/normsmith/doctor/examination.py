"""`Examination`: what was found, as a table on the terminal, as data, as JSON, and as SARIF for CI."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from normsmith.doctor.finding import SEVERITIES, Finding, Severity
from normsmith.doctor.layer_page import LayerView
from normsmith.doctor.recommend.recommend import recommend
from normsmith.doctor.recommend.recommendation import Recommendation
from normsmith.doctor.subject import Subject
from normsmith.errors import OptionError
from normsmith.surgery._console import as_text
from normsmith.writing import write_whole

SCHEMA = 1
_LEVELS = {"info": "note", "warning": "warning", "error": "error"}
_SHOWN = 4  # layers of a finding in the printed table


@dataclass(frozen=True, eq=False)
class Examination:
    """The findings, the worst first; a record of numbers for each layer; and what could not be looked at."""

    model: str
    findings: tuple[Finding, ...]
    table: tuple[Mapping[str, Any], ...]  # plain records, one for each layer
    missing: tuple[str, ...]
    batches: int
    samples: int
    details: tuple[Mapping[str, Any], ...]  # for each layer what has no place in a table: curves, samples
    whole: Mapping[str, float]  # numbers of the model as a whole, of depth="full"
    subject: Subject = field(repr=False)
    views: tuple[LayerView, ...] = field(default=(), repr=False)  # what the page shows of each layer
    images: Tensor | None = field(default=None, repr=False)  # a few of the inputs, for pictures of channels

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings that are at least so severe."""
        return tuple(f for f in self.findings if f.weight >= SEVERITIES.index(severity))

    def recommend(
        self,
        constraints: Mapping[str, Any] | None = None,
        *,
        train_steps: int = 0,
        candidates: Sequence[str] | None = None,
        seed: int = 0,
        budget: float | None = None,
    ) -> Recommendation:
        """Rank normalizers for this model by measuring each on a copy of it, converted and recalibrated, on these data.

        - `constraints`: `{"batch": 2}`, samples in a batch of training (default: those of the loader); `"batch_independent": True`;
          `"max_slowdown": 1.5`, of a step against the model as it is.
        - `train_steps`: train every copy so many steps first, from the same seed, on the same batches, by Adam with lr 0.001.
        - `candidates`: names of the catalog, with options if need be; the default is the model's own method and some usual ones.
        - `budget`: seconds after which no further candidate is begun.

        The loader is gone through again, up to 512 samples: one half to learn from, one to measure on, in batches of that size. The
        score is the loss in evaluation after training. Without training it is the larger of two losses: in evaluation, and by the
        statistics of training, as that is where training would start from. Without labels it is the distance of the outputs to those of
        the model as it is, in their deviations. A conversion that needs training is judged too harshly without `train_steps`. A winner
        is named only if all others are behind it beyond a 95 % interval (`recommend/ranking.py`). The model, and the random state, stay
        as they are.
        """
        return recommend(self.subject, constraints, train_steps, candidates, seed, budget)

    def to_pandas(self) -> Any:
        """The table of layers as a pandas data frame; needs pandas."""
        import pandas  # noqa: PLC0415  (optional)

        return pandas.DataFrame(list(self.table))

    def to_polars(self) -> Any:
        """The table of layers as a polars data frame; needs polars."""
        import polars  # noqa: PLC0415  (optional)

        return polars.DataFrame(list(self.table))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "batches": self.batches,
            "samples": self.samples,
            "findings": [asdict(f) for f in self.findings],
            "layers": [{**row, **more} for row, more in zip(self.table, self.details, strict=True)],
            "missing": list(self.missing),
            "whole": dict(self.whole),
        }

    def to_sarif(self) -> dict[str, Any]:
        """The findings as SARIF 2.1.0, which code hosts show beside the code; a layer is a logical location."""
        rules = {f.code: {"id": f.code, "shortDescription": {"text": f.title}} for f in self.findings}
        results = [
            {
                "ruleId": f.code,
                "level": _LEVELS[f.severity],
                "message": {"text": f"{f.explanation} Cure: {f.cure}"},
                "locations": [{"logicalLocations": [{"fullyQualifiedName": name, "kind": "module"}]} for name in f.layers],
            }
            for f in self.findings
        ]
        tool = {"driver": {"name": "normsmith", "rules": list(rules.values())}}
        return {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": tool, "results": results}],
        }

    def save(self, path: str | Path, *, pictures: Mapping[str, int] | None = None) -> Path:
        """Write a report, whole or not at all: `.html` a page, `.json` the data, `.sarif` the findings, `.txt` what is printed.

        `pictures={"layer": channel}`, for a page about a model of images, adds what that channel looks at in some samples, and an input
        that drives it high: two pictures a layer, of the model as it is now.
        """
        path = Path(path)
        kinds = {".json": self.to_dict, ".sarif": self.to_sarif}
        if path.suffix not in {*kinds, ".html", ".txt"}:
            raise OptionError(f"save expects a path that ends in .html, .json, .sarif or .txt: got {path.name!r}")
        if path.suffix == ".html":
            from normsmith.doctor.page import page  # noqa: PLC0415  (needs Jinja)

            return page(self, pictures or {}).save(path)
        if pictures:
            raise OptionError(f"save expects pictures= only for a page, .html: got {path.name!r}; leave pictures= out")
        text = str(self) if path.suffix == ".txt" else json.dumps(kinds[path.suffix](), indent=2)
        write_whole(path, lambda part: part.write_text(text + "\n"))
        return path

    def __str__(self) -> str:
        counts = ", ".join(f"{sum(f.severity == s for f in self.findings)} {s}" for s in reversed(SEVERITIES))
        head = f"{self.model}: {len(self.table)} normalizers, {self.batches} batches, {self.samples} samples: {counts}"
        lines = [head, *(_block(f) for f in self.findings), *(f"not looked at: {what}" for what in self.missing)]
        if not self.at_least("warning"):
            lines.insert(1, "nothing that needs a cure")
        return "\n".join(lines)


def _block(finding: Finding) -> str:
    """One finding as text: headline, numbers of its worst layers, explanation, cure."""
    table = Table(box=None, pad_edge=False, show_header=True)
    keys = list(dict.fromkeys(key for name in finding.layers for key in finding.evidence.get(name, {})))
    for heading in ("layer", *keys):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for name in finding.layers[:_SHOWN]:
        values = finding.evidence.get(name, {})
        table.add_row(name or "(the model)", *(_number(values.get(key, "")) for key in keys))
    more = len(finding.layers) - _SHOWN
    rows = [as_text(table, width=110)] + ([f"and {more} more"] if more > 0 else [])
    indented = "\n".join("    " + line.rstrip() for row in rows for line in row.splitlines())
    why = textwrap.fill(finding.explanation, 110, initial_indent="    ", subsequent_indent="    ")
    return f"\n{finding.severity} {finding.code}: {finding.title}\n{indented}\n{why}\n    cure: {finding.cure}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"

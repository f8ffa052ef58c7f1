"""`Recommendation`: candidates in order, with what was measured of each and why the others are not among them."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table

from normsmith.surgery._console import as_text

Standing = Literal["ranked", "ruled out", "failed", "not measured"]


@dataclass(frozen=True)
class Ranked:
    """One candidate; numbers are None where there are none."""

    method: str
    standing: Standing
    reason: str
    score: float | None = None
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    behind: float | None = None  # the first
    behind_low: float | None = None
    behind_high: float | None = None
    evaluation: float | None = None
    training: float | None = None
    gap: float | None = None  # evaluation less training
    noise: float | None = None
    milliseconds: float | None = None
    slowdown: float | None = None


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The candidates, the best first; printed, it is a table."""

    model: str
    rows: tuple[Ranked, ...]
    batch: int
    samples: int  # that were measured on
    unit: Literal["loss", "distance"]
    train_steps: int
    optimizer: str
    seed: int

    @property
    def tied(self) -> tuple[str, ...]:
        """The first, and what cannot be told from it."""
        return tuple(row.method for row in self._ranked if row is self._ranked[0] or not (row.behind_low or 0) > 0)

    @property
    def best(self) -> str | None:
        """The first, if every other is behind it beyond chance, and none was left out for want of time; else None."""
        return self.tied[0] if len(self.tied) == 1 and not self._left_out else None

    @property
    def cure(self) -> str | None:
        """The line of code that follows from it."""
        return None if self.best is None else f'ns.convert(model, "{self.best}")'

    @property
    def _left_out(self) -> int:
        return sum(row.standing == "not measured" for row in self.rows)

    @property
    def _ranked(self) -> list[Ranked]:
        return [row for row in self.rows if row.standing == "ranked"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; an interval that is not known has None for its ends."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(r).items()} for r in self.rows
        ]
        own = {key: getattr(self, key) for key in ("model", "batch", "samples", "unit", "train_steps", "optimizer", "seed")}
        return {**own, "best": self.best, "tied": list(self.tied), "cure": self.cure, "rows": rows}

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False)
        headings = ("", "method", self.unit, "95 %", "evaluation", "training", "noise", "ms a step", "times")
        for heading in headings:
            table.add_column(heading, justify="left" if heading in ("", "method") else "right")
        for index, row in enumerate(self.rows):
            place = str(index + 1) if row.standing == "ranked" else ""
            values = (row.evaluation, row.training, row.noise, row.milliseconds, row.slowdown)
            between = "" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
            table.add_row(place, row.method, _number(row.score), between, *map(_number, values))
        notes = [
            f"{r.method}: {r.reason if r.standing == 'ranked' else f'{r.standing}, {r.reason}'}" for r in self.rows if r.reason
        ]
        return "\n".join([self._head(), *(line.rstrip() for line in as_text(table).splitlines()), *notes, self._verdict()])

    def _head(self) -> str:
        what = "the loss" if self.unit == "loss" else "the distance to the outputs of the model as it is"
        trained = f" after {self.train_steps} steps ({self.optimizer})" if self.train_steps else ""
        of = "in evaluation" if self.train_steps else "the worse of evaluation and training"
        return f"{self.model} at batches of {self.batch}: {what}{trained}, {of}, on {self.samples} samples"

    def _verdict(self) -> str:
        if self.best is not None:
            return f"best: {self.best}\ncure: {self.cure}"
        if not self.tied:
            return "no candidate could be measured"
        if len(self.tied) == 1:
            return f"no winner: {self.tied[0]} is the best of those measured, {self._left_out} were not; give more budget"
        return f"no winner: {', '.join(self.tied)} cannot be told apart on these data; take the cheapest, or give more data"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

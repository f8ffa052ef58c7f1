"""`Setting`: what trials have in common that differ in the normalizer and the seed alone; and the trials sorted into settings."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import polars as pl

Row = Mapping[str, Any]  # of `Results.trials`


@dataclass(frozen=True)
class Setting:
    """Everything that the trials of one comparison share."""

    dataset: str
    model: str
    optimizer: str
    learning_rate: float | None  # None where it was searched for every normalizer
    epochs: int | None
    steps: int | None
    rest: str  # schedule, training and so on, as JSON
    statistics_batch: int
    batch: int

    @property
    def size(self) -> str:
        """The batch in words."""
        return f"{self.batch}" if self.batch == self.statistics_batch else f"{self.batch} in parts of {self.statistics_batch}"

    @property
    def family(self) -> "Setting":
        """What settings have in common that differ in the batch size alone."""
        return replace(self, batch=0, statistics_batch=0)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "rest": json.loads(self.rest)}

    def parts(self) -> dict[str, Any]:
        """All of it but the batch, flat, by name."""
        known = asdict(self.family)
        flat = {name: known[name] for name in ("dataset", "model", "optimizer", "learning_rate", "epochs", "steps")}
        for name, value in json.loads(self.rest).items():
            flat |= {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        return flat


@dataclass
class Group:
    """The trials of a setting: of every normalizer the row of every seed."""

    setting: Setting
    rows: dict[str, dict[int, Row]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Every seed that some normalizer was run with."""
        return sorted({seed for rows in self.rows.values() for seed in rows})

    def scores(self, normalizer: str) -> dict[int, float]:
        """The accuracy of every seed that has one, by seed."""
        rows = self.rows.get(normalizer, {})
        return {seed: rows[seed]["accuracy"] for seed in sorted(rows) if has_score(rows[seed])}

    def differences(self, normalizer: str, other: str) -> dict[int, float]:
        """The accuracy of one less that of another, of every seed that both have."""
        ours, theirs = self.scores(normalizer), self.scores(other)
        return {seed: score - theirs[seed] for seed, score in ours.items() if seed in theirs}

    def missing(self, normalizer: str) -> dict[int, str]:
        """The seeds of others that this one has no accuracy of, with the reason."""
        rows = self.rows[normalizer]
        return {seed: _reason(rows.get(seed)) for seed in self.seeds if seed not in rows or not has_score(rows[seed])}


def has_score(row: Row) -> bool:
    """Whether a trial counts: one that diverged does, with the accuracy it came to; one that crashed does not."""
    return row["status"] != "crashed" and row["accuracy"] is not None and math.isfinite(row["accuracy"])


def _reason(row: Row | None) -> str:
    if row is None:
        return "not there"
    if row["status"] == "crashed":
        return f"crashed: {str(row['error'] or 'no reason given').partition(chr(10))[0]}"
    return f"{row['status']} without an accuracy"


def group(trials: pl.DataFrame) -> tuple[list[Group], list[str]]:
    """The trials by setting, without those of a search of learning rates; and notes. Of a trial that lies there twice the newest counts."""
    rows = trials.sort("ended", "identity", nulls_last=False).to_dicts()
    searched = {_setting(row, searched=True) for row in rows if row["searching"]}
    groups: dict[Setting, Group] = {}
    older: list[Row] = []
    for row in rows:
        if row["searching"]:
            continue
        free = _setting(row, searched=True)
        setting = free if free in searched else _setting(row, searched=False)
        seeds = groups.setdefault(setting, Group(setting)).rows.setdefault(row["normalizer"], {})
        if row["seed"] in seeds:
            older.append(seeds[row["seed"]])
        seeds[row["seed"]] = row
    notes = []
    if older:
        notes.append(
            f"of {counted(len(older), 'trial')} there is a newer run, which counts instead: {shortened(_names(older))}"
        )
    return [groups[setting] for setting in sorted(groups, key=_order)], notes


def _setting(row: Row, *, searched: bool) -> Setting:
    rate = None if searched else row["learning_rate"]
    head = (row["dataset"], row["model"], row["optimizer"], rate, row["epochs"], row["steps"], row["rest"])
    return Setting(*head, row["statistics_batch"], row["batch"])


def _order(setting: Setting) -> tuple[Any, ...]:
    return tuple((value is not None, value) for value in asdict(setting).values())


def _names(rows: Iterable[Row]) -> list[str]:
    return [f"{row['normalizer']} at batch {row['batch']}, seed {row['seed']}" for row in rows]


def titles(settings: Iterable[Setting]) -> dict[Setting, str]:
    """What each family is called: data set, model, and whatever else is not the same in all."""
    families = list(dict.fromkeys(setting.family for setting in settings))
    parts = {family: family.parts() for family in families}
    varying = dict.fromkeys(
        name for known in parts.values() for name in known if len({repr(p.get(name)) for p in parts.values()}) > 1
    )
    found = {}
    for family, known in parts.items():
        extra = [f"{name} {known.get(name)}" for name in varying if name not in {"dataset", "model"}]
        if known["learning_rate"] is None:
            extra = [part for part in extra if not part.startswith("learning_rate ")] + ["learning rate searched for each"]
        found[family] = ", ".join([family.dataset, family.model, *extra])
    return found


def counted(number: int, what: str) -> str:
    """A number with its noun."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

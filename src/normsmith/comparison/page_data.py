"""What the charts of a comparison draw: one family of settings, its records gathered over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from normsmith.comparison.results import Results
from normsmith.comparison.settings import Group, Setting
from normsmith.comparison.statistics import Difference, Entry, Statistics

CURVES = ("accuracy", "train loss")
POINTS = 40_000  # of all curves of a page together
_LEAST = 12  # epochs of a curve, however many curves there are


@dataclass(frozen=True)
class Palette:
    """The colour of every normalizer, the same in all charts: the baseline in ink, the best in colours, the rest in grey."""

    colours: Mapping[str, str]
    plain: frozenset[str]  # without a colour of their own

    @property
    def names(self) -> list[str]:
        """All normalizers."""
        return list(self.colours)

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Rows on normalizers as a table of a chart, each with its colour."""
        names = rows[0] if rows else ()
        found = {name: [row[name] for row in rows] for name in names}
        return {**found, "colour": [self.colours[row["normalizer"]] for row in rows]} if "normalizer" in names else found

    @property
    def table(self) -> dict[str, list[Any]]:
        """Names by their number, so that curves need no names, the grey ones first."""
        names = self.names[::-1]
        return {
            "n": list(range(len(names))),
            "normalizer": names,
            "colour": [self.colours[name] for name in names],
            "band": [name not in self.plain for name in names],
        }

    def drawn(self, names: Iterable[str]) -> list[str]:
        """Names in the order in which they are drawn, over one another: the grey ones first."""
        order = {name: at for at, name in enumerate(reversed(self.names))}
        return sorted(names, key=order.__getitem__)


def palette(statistics: Statistics) -> Palette:
    """Eight colours are told apart at a glance, more are not."""
    ranks: dict[str, list[int]] = {}
    for entry in statistics.entries:
        ranks.setdefault(entry.normalizer, []).append(entry.rank or len(statistics.entries))
    others = sorted((n for n in ranks if n != statistics.baseline), key=lambda n: (sum(ranks[n]) / len(ranks[n]), n))
    series = [f"var(--series-{number})" for number in range(1, 9)]
    colours = {name: series[at] if at < len(series) else "var(--rest)" for at, name in enumerate(others)}
    first = {statistics.baseline: "var(--ink)"} if statistics.baseline in ranks else {}
    return Palette({**first, **colours}, frozenset(others[len(series) :]))


@dataclass(frozen=True, eq=False)
class Place:
    """A setting: its trials and what they came to, the best normalizer first."""

    setting: Setting
    group: Group
    entries: Sequence[Entry]
    differences: Mapping[str, Difference]

    @property
    def ranked(self) -> list[Entry]:
        """Those with an accuracy."""
        return [entry for entry in self.entries if entry.mean is not None]

    @property
    def seeds(self) -> int:
        """The most that a normalizer has."""
        return max((len(entry.scores) for entry in self.entries), default=0)


@dataclass(frozen=True, eq=False)
class Family:
    """The settings that differ in the batch size alone. Records are means over seeds; `place` is a place in `places`."""

    title: str
    places: Sequence[Place]
    baseline: str
    palette: Palette
    curves: pl.DataFrame = field(repr=False)  # of whole trials: place, normalizer, name, epoch, mean, low, high
    layers: pl.DataFrame = field(repr=False)  # of layers: place, normalizer, name, layer, depth, epoch, mean


def families(results: Results, statistics: Statistics, groups: Iterable[Group], names: Mapping[Setting, str]) -> list[Family]:
    """All of them, in the order of the statistics."""
    colours = palette(statistics)
    places = [_place(group, statistics) for group in groups]
    records = _records(results, places).filter(pl.col("value").is_finite())
    curves, layers = _curves(records), _layers(records)
    found = []
    for family, title in names.items():
        own = [at for at, place in enumerate(places) if place.setting.family == family]
        mine, first = pl.col("place").is_in(own), pl.col("place") - min(own)
        parts = (frame.filter(mine).with_columns(first) for frame in (curves, layers))
        found.append(Family(title, [places[at] for at in own], statistics.baseline, colours, *parts))
    return found


def _place(group: Group, statistics: Statistics) -> Place:
    entries, differences = statistics.of(group.setting)
    return Place(group.setting, group, entries, {d.normalizer: d for d in differences})


def _records(results: Results, places: Sequence[Place]) -> pl.LazyFrame:
    """Those of all trials that count, with what they are of beside their identity."""
    rows: list[tuple[Any, ...]] = [
        (row["identity"], at, name)
        for at, place in enumerate(places)
        for name, seeds in place.group.rows.items()
        for row in seeds.values()
    ]
    schema = {"identity": pl.String, "place": pl.Int32, "normalizer": pl.String}
    known = pl.LazyFrame(rows, schema=schema, orient="row")
    return results.scan().join(known, on="identity", how="inner")


def _curves(records: pl.LazyFrame) -> pl.DataFrame:
    keys = ["place", "normalizer", "name", "epoch"]
    whole = records.filter((pl.col("layer") == "") & pl.col("name").is_in(CURVES)).group_by(keys)
    found = whole.agg(mean=pl.mean("value"), low=pl.min("value"), high=pl.max("value")).sort(keys).collect()
    return _thinned(found, keys[:-1])


def _layers(records: pl.LazyFrame) -> pl.DataFrame:
    keys = ["place", "normalizer", "name", "layer", "epoch"]
    found = records.filter(pl.col("layer") != "").group_by(keys).agg(mean=pl.mean("value"), row=pl.min("row")).collect()
    of = ["place", "normalizer"]
    found = found.with_columns(first=pl.min("row").over(keys[:-1]))
    found = found.with_columns(depth=pl.col("first").rank("dense").over([*of, "name"]).cast(pl.Int32))
    depth = pl.max("depth").over([*of, "layer"])  # some records are not of every layer: the longest list has the order
    return _thinned(found, keys[:-1]).with_columns(depth).drop("row", "first").sort([*of, "name", "depth", "epoch"])


def place_among(names: Sequence[str], column: str) -> pl.Expr:
    """Of every value its place among the names."""
    return pl.col(column).replace_strict(list(names), list(range(len(names))), return_dtype=pl.Int32)


def _thinned(records: pl.DataFrame, series: Sequence[str]) -> pl.DataFrame:
    """Every so many epochs of a curve, counted from the last, so that all of them have POINTS at most."""
    most = max(_LEAST, POINTS // max(records.select(series).n_unique(), 1))
    last = pl.max("epoch").over("place")
    return records.filter((last - pl.col("epoch")) % (last // most + 1) == 0)

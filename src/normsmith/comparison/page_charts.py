"""The charts of one family of settings: specifications with data, captions, and words for those who do not see them."""

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import polars as pl

from normsmith.comparison.page_data import Family, Place, place_among
from normsmith.comparison.page_specs import ROW, Specs, height_of
from normsmith.comparison.settings import counted
from normsmith.comparison.statistics import Entry
from normsmith.comparison.words import percent, points
from normsmith.report import Chart, Grid, packed
from normsmith.report.charts import Column

_AXIS = 40  # pixels below the rows of a chart
_CURVES = {"accuracy": "test accuracy, %", "train loss": "training loss"}
_NOTES = {
    "ranking": "Mean and its 95 % interval, a stroke for each seed; at the right the ranks that cannot be ruled out.",
    "difference": "Seed by seed, with the 95 % interval of the mean; filled where it is clear of zero after correction.",
    "pairs": "A line for each seed, from the baseline, the stroke, to the normalizer, the dot.",
}


def hundred(value: float | None) -> float | None:
    """A share in percent."""
    return None if value is None else 100 * value


class Charts:
    """Of a family."""

    def __init__(self, family: Family) -> None:
        self.family, self.specs = family, Specs(family.baseline)

    def by_batch(self, height: int) -> list[Any]:
        """Accuracy versus batch size, where there are several."""
        sizes = sorted({place.setting.batch for place in self.family.places})
        if len(sizes) < 2:
            return []
        means, seeds = [], []
        for place in self.family.places:
            s = place.setting
            parts = "" if s.batch == s.statistics_batch else f"in parts of {s.statistics_batch}"
            for e in self._drawn(place):
                at = {"normalizer": e.normalizer, "batch": s.batch, "parts": parts}
                means.append({**at, "mean": hundred(e.mean)})
                seeds += [{**at, "seed": seed, "score": 100 * score} for seed, score in e.scores.items()]
        split = any(row["parts"] for row in means)
        caption = "A line joins the means, a small dot is a seed." + (
            " Dashed: statistics over parts of a batch." if split else ""
        )
        words = "; ".join(f"batch {place.setting.size}: {_best(place)}" for place in self.family.places)
        data = {"means": self.family.palette.columns(means), "seeds": self.family.palette.columns(seeds)}
        return [Chart(self.specs.by_batch(sizes, height), data, "Accuracy by batch size", caption, words, height + _AXIS)]

    def _drawn(self, place: Place) -> list[Entry]:
        entries = {entry.normalizer: entry for entry in place.ranked}
        return [entries[name] for name in self.family.palette.drawn(entries)]

    def rankings(self) -> list[Any]:
        """Of every setting the ranking, and beside it the differences to the baseline."""
        found: list[Any] = []
        for place in self.family.places:
            if place.ranked:
                pair = [self._ranking(place, not found), *([self._differences(place, not found)] if place.differences else [])]
                found.append(Grid(pair, least=24))
        return found

    def _ranking(self, place: Place, first: bool) -> Chart:
        means = [
            {
                "normalizer": e.normalizer,
                "mean": hundred(e.mean),
                "low": hundred(max(e.interval[0], 0.0) if e.interval else e.mean),
                "high": hundred(min(e.interval[1], 1.0) if e.interval else e.mean),
                "ranks": _ranks(e),
            }
            for e in place.ranked
        ]
        seeds = [row for e in place.ranked for row in _seeds(e.normalizer, e.scores)]
        data = {"means": self.family.palette.columns(means), "seeds": self.family.palette.columns(seeds)}
        title = f"Accuracy at batch {place.setting.size}"
        caption = (_NOTES["ranking"] if place.seeds > 1 else "One seed: no interval, and any rank.") if first else ""
        return Chart(self.specs.ranking(len(means)), data, title, caption, f"{title}: {_best(place)}", _tall(len(means)))

    def _differences(self, place: Place, first: bool) -> Chart:
        known = [(e.normalizer, place.differences.get(e.normalizer)) for e in place.ranked]
        means, seeds = [], []
        for name, d in known:
            if d is None and name != self.family.baseline:
                continue
            low, high = (d.interval or (d.mean, d.mean)) if d else (0.0, 0.0)
            words = "baseline" if d is None else points(d.mean, unit=False).replace("-", "\u2212") + (" *" if d.clear else "")
            row = {"normalizer": name, "mean": 100 * d.mean if d else 0.0, "low": 100 * low, "high": 100 * high}
            means.append({**row, "clear": d is not None and d.clear, "words": words})
            seeds += _seeds(name, d.by_seed) if d else []
        clear = [f"{d.normalizer} {points(d.mean)}" for d in place.differences.values() if d.clear]
        words = (
            f"Differences to {self.family.baseline} at batch {place.setting.size}; clear of zero: {', '.join(clear) or 'none'}"
        )
        data = {"means": self.family.palette.columns(means), "seeds": self.family.palette.columns(seeds), "zero": {"x": [0]}}
        title = f"Beside {self.family.baseline} at batch {place.setting.size}"
        return Chart(
            self.specs.differences(len(means)), data, title, _NOTES["difference"] if first else "", words, _tall(len(means))
        )

    def pairs(self) -> list[Any]:
        """Every seed of every normalizer, joined to that of the baseline; nothing where there is one seed."""
        charts: list[Any] = []
        for place in self.family.places:
            theirs = place.group.scores(self.family.baseline)
            rows = [
                {"normalizer": e.normalizer, "seed": seed, "baseline": 100 * theirs[seed], "score": 100 * score}
                for e in place.ranked
                for seed, score in e.scores.items()
                if seed in theirs and e.normalizer != self.family.baseline
            ]
            seeds = len({row["seed"] for row in rows})
            if seeds > 1:
                title = f"Seed by seed at batch {place.setting.size}"
                caption = _NOTES["pairs"] if not charts else ""
                number = len({row["normalizer"] for row in rows})
                spec, tall = self.specs.pairs(number, seeds), _tall(number, height_of(seeds))
                charts.append(Chart(spec, {"pairs": self.family.palette.columns(rows)}, title, caption, _pairs(place), tall))
        return [Grid(charts, least=24)] if charts else []

    def curves(self) -> list[Any]:
        """Test accuracy and training loss by epoch."""
        return [Grid(charts, least=22) for at in range(len(self.family.places)) if (charts := self._curves(at))]

    def _curves(self, at: int) -> list[Chart]:
        place, charts = self.family.places[at], []
        table = self.family.palette.table
        for name, what in _CURVES.items():
            rows = self.family.curves.filter((pl.col("place") == at) & (pl.col("name") == name))
            if rows.is_empty():
                continue
            rows = rows.with_columns(n=place_among(table["normalizer"], "normalizer")).sort("n", "epoch")
            factor = 100 if name == "accuracy" else 1
            numbers = {part: packed((rows[part] * factor).to_numpy()) for part in ("mean", "low", "high")}
            curve: Mapping[str, Column] = {"n": rows["n"].to_list(), "epoch": (rows["epoch"] + 1).to_list(), **numbers}
            epochs, bands = rows["epoch"].n_unique(), place.seeds > 1
            logarithmic = name == "train loss" and float(rows["low"].min()) > 0  # type: ignore[arg-type]
            spec = self.specs.curve(what, epochs, logarithmic=logarithmic, bands=bands)
            title = f"{what[0].upper()}{what[1:]}, batch {place.setting.size}"
            words = f"{title}: curves of {rows['normalizer'].n_unique()} normalizers over {epochs} epochs"
            charts.append(Chart(spec, {"curve": curve, "names": table}, title, "", words))
        return charts

    def costs(self) -> list[Any]:
        """Time and memory versus accuracy, of every setting."""
        found = []
        for place in self.family.places:
            charts = [
                chart
                for title, value in (
                    (
                        "milliseconds a step",
                        lambda e: None if e.cost.seconds_per_step is None else 1e3 * e.cost.seconds_per_step,
                    ),
                    ("MiB kept for the backward pass", lambda e: None if e.cost.memory is None else e.cost.memory / 2**20),
                )
                if (chart := self._cost(place, title, value)) is not None
            ]
            found += [Grid(charts, least=22)] if charts else []
        return found

    def _cost(self, place: Place, title: str, value: Callable[[Entry], float | None]) -> Chart | None:
        rows = [
            {
                "normalizer": e.normalizer,
                "x": value(e),
                "mean": hundred(e.mean),
                "low": hundred(min(e.scores.values())),
                "high": hundred(max(e.scores.values())),
            }
            for e in self._drawn(place)
            if value(e) is not None
        ]
        if not rows:
            return None
        front = _front(rows)
        names = ", ".join(row["normalizer"] for row in front)
        words = f"Accuracy over {title}; none is both cheaper and better than {names}"
        data = {
            "costs": self.family.palette.columns(rows),
            "front": self.family.palette.columns([{"x": row["x"], "mean": row["mean"]} for row in front]),
        }
        return Chart(self.specs.cost(title), data, f"Accuracy over {title}, batch {place.setting.size}", "", words)

    def targets(self) -> list[Any]:
        """Seconds until the target accuracy, where there is one."""
        charts: list[Any] = []
        for place in self.family.places:
            reached = {e.normalizer: e.cost.reached for e in place.entries if e.cost.reached is not None}
            if not any(reached.values()):
                continue
            seeds = [
                {"normalizer": name, "seed": seed, "seconds": row["seconds to target"]}
                for name in reached
                for seed, row in place.group.rows[name].items()
                if row["seconds to target"] is not None
            ]
            times = {name: [row["seconds"] for row in seeds if row["normalizer"] == name] for name in reached}
            order = sorted(reached, key=lambda name: median(times[name] or [float("inf")]))
            medians = [
                {
                    "normalizer": name,
                    "mean": median(times[name]) if times[name] else None,
                    "words": f"{reached[name]} of {len(place.group.rows[name])}",
                }
                for name in order
            ]
            target = next(row["target_accuracy"] for rows in place.group.rows.values() for row in rows.values())
            title = f"Seconds to {100 * target:g} %, batch {place.setting.size}"
            caption = "A stroke is a seed, the dot the median of those that came there; at the right how many did."
            data = {"means": self.family.palette.columns(medians), "seeds": self.family.palette.columns(seeds)}
            first = f"{order[0]} first" if times[order[0]] else "none"
            spec = self.specs.target(len(medians))
            charts.append(Chart(spec, data, title, caption if not charts else "", f"{title}: {first}", _tall(len(medians))))
        return [Grid(charts, least=24)] if charts else []


def _tall(rows: int, height: int = ROW) -> int:
    return rows * height + _AXIS


def _seeds(name: str, scores: Mapping[int, float]) -> list[dict[str, Any]]:
    return [{"normalizer": name, "seed": seed, "score": 100 * score} for seed, score in scores.items()]


def _ranks(entry: Entry) -> str:
    low, high = entry.ranks or (entry.rank, entry.rank)
    return f"{low}" if low == high else f"{low} to {high}"


def _best(place: Place) -> str:
    return f"{place.ranked[0].normalizer} {percent(place.ranked[0].mean)}" if place.ranked else "no accuracy"


def _pairs(place: Place) -> str:
    ahead = [
        f"{d.normalizer} ahead in {sum(v > 0 for v in d.by_seed.values())} of {counted(len(d.by_seed), 'seed')}"
        for d in place.differences.values()
    ]
    return ", ".join(ahead)


def _front(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that none is both cheaper and better than, the cheapest first."""
    found: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["x"], -row["mean"])):
        if not found or row["mean"] > found[-1]["mean"]:
            found.append(row)
    return found

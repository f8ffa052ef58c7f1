"""What was recorded inside the normalizers: shares of switchable ones, gains of Kalman chains, moments of what they read."""

import math
from collections.abc import Mapping
from typing import Any

import polars as pl

from normsmith.comparison.page_data import Family, place_among
from normsmith.comparison.page_specs import Spec, Specs, axis, dots, whole
from normsmith.report import Chart, Details, Grid, packed
from normsmith.report.charts import Column

_SHARE = r"^(\w+) share of (.+)$"
_STATISTICS = {"mean": "mean", "var": "variance"}
_MOMENTS = {"mean": "mean", "variance": "variance", "skewness": "skewness", "excess kurtosis": "excess kurtosis"}
_PARTS = [f"var(--series-{number})" for number in (8, 7, 6, 5)]  # others than most normalizers have


def _layer_tip(value: str) -> list[Spec]:
    return [
        {"field": "layer", "type": "nominal"},
        {"field": "epoch"},
        {"field": value, "type": "quantitative", "format": ".3~g"},
    ]


def _shares_at_the_end(parts: list[str]) -> Spec:
    colour = {"field": "part", "type": "nominal", "title": None, "scale": {"domain": parts, "range": _PARTS}}
    order = {"field": "depth", "type": "ordinal", "title": "layer, in order", "axis": {"labelOverlap": True}}
    share = {"field": "share", **axis("share", scale={"domain": [0, 1]})}
    tip = [{"field": name, "type": "nominal"} for name in ("layer", "part")]
    return {
        "data": {"name": "shares"},
        "mark": {"type": "bar", "width": {"band": 0.86}},
        "encoding": {"x": order, "y": share, "color": colour, "tooltip": [*tip, {"field": "share", "format": ".3f"}]},
        "height": 170,
    }


def _shares_by_epoch(parts: list[str], reach: list[float], epochs: int) -> Spec:
    legend = {"symbolType": "square", "symbolOpacity": 1, "symbolStrokeWidth": 6}
    colour = {"field": "part", "type": "nominal", "title": None, "scale": {"domain": parts, "range": _PARTS}, "legend": legend}
    share = {"field": "share", **axis("share", scale={"domain": reach})}
    names = {"lookup": "depth", "from": {"data": {"name": "layers"}, "key": "depth", "fields": ["layer"]}}
    kinds = {"lookup": "p", "from": {"data": {"name": "parts"}, "key": "p", "fields": ["part"]}}
    common = {"x": {"field": "epoch", **whole("epoch", epochs)}, "y": share, "color": colour}
    single = {**common, "detail": {"field": "depth"}, "tooltip": [{"field": "part", "type": "nominal"}, *_layer_tip("share")]}
    mean = {**common, "y": {**share, "aggregate": "mean"}}
    thick = {"type": "line", "strokeWidth": 2.75, "point": dots(epochs)}
    return {
        "data": {"name": "shares"},
        "transform": [names, kinds],
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35}, "encoding": single},
            {"mark": thick, "encoding": mean},
        ],
        "height": 170,
    }


def _gains(colour: str, reach: list[float], epochs: int) -> Spec:
    names = {"lookup": "depth", "from": {"data": {"name": "layers"}, "key": "depth", "fields": ["layer"]}}
    deep = {"field": "depth", "type": "quantitative", "scale": {"zero": False, "range": [0.25, 1]}, "legend": None}
    y = {"field": "gain", **axis("gain", scale={"domain": reach})}
    return {
        "data": {"name": "gains"},
        "transform": [names],
        "mark": {"type": "line", "color": colour, "point": dots(epochs)},
        "encoding": {
            "x": {"field": "epoch", **whole("epoch", epochs)},
            "y": y,
            "detail": {"field": "depth"},
            "opacity": deep,
            "tooltip": _layer_tip("gain"),
        },
        "height": 200,
    }


class Layers:
    """The charts of a family that are drawn of records of layers."""

    def __init__(self, family: Family) -> None:
        self.family, self.specs = family, Specs(family.baseline)

    def _of(self, frame: pl.DataFrame) -> list[tuple[int, str, pl.DataFrame]]:
        """By setting and normalizer, in their order."""
        keys = frame.select("place", "normalizer").unique(maintain_order=True).rows()
        return [(at, name, frame.filter((pl.col("place") == at) & (pl.col("normalizer") == name))) for at, name in keys]

    def shares(self) -> list[Any]:
        """Where a switchable one takes its statistics from."""
        named = self.family.layers.with_columns(
            statistic=pl.col("name").str.extract(_SHARE, 1), part=pl.col("name").str.extract(_SHARE, 2)
        ).filter(pl.col("part").is_not_null())
        found: list[Any] = []
        for at, name, rows in self._of(named):
            charts = [chart for of in rows["statistic"].unique(maintain_order=True) for chart in self._shares(rows, of)]
            found.append(Grid(charts, least=22, title=self._titled(f"{name}: where it takes its statistics from", at)))
        return found

    def _titled(self, text: str, at: int) -> str:
        return f"{text}, batch {self.family.places[at].setting.size}"

    def _shares(self, rows: pl.DataFrame, statistic: str) -> list[Chart]:
        rows = rows.filter(pl.col("statistic") == statistic)
        parts = rows["part"].unique(maintain_order=True).to_list()
        what, epochs = _STATISTICS.get(statistic, statistic), rows["epoch"].n_unique()
        last = rows.filter(pl.col("epoch") == pl.max("epoch"))
        end = {
            name: last[of].to_list()
            for name, of in (("depth", "depth"), ("layer", "layer"), ("part", "part"), ("share", "mean"))
        }
        usual = ", ".join(f"{part} {float(last.filter(part=part)['mean'].mean()):.2f}" for part in parts)  # type: ignore[arg-type]
        charts = [
            Chart(_shares_at_the_end(parts), {"shares": end}, f"Shares of the {what} at the end", "", f"On average {usual}")
        ]
        if epochs > 1:
            codes = rows.select(place_among(parts, "part"))["part"].to_list()
            data: Mapping[str, Mapping[str, Column]] = {
                "shares": {**_by_epoch(rows), "p": codes, "share": packed(rows["mean"].to_numpy())},
                "layers": _names(rows),
                "parts": {"p": list(range(len(parts))), "part": parts},
            }
            spec = _shares_by_epoch(parts, _reach(rows["mean"]), epochs)
            caption = "Thin: a layer; thick: the mean of all layers."
            charts.append(Chart(spec, data, f"Shares of the {what} by epoch", caption, f"At the end on average {usual}"))
        return charts

    def gains(self) -> list[Any]:
        """How far a Kalman chain believes what it measures."""
        charts: list[Any] = []
        for at, name, rows in self._of(self.family.layers.filter(name="gain")):
            data: Mapping[str, Mapping[str, Column]] = {
                "gains": {**_by_epoch(rows), "gain": packed(rows["mean"].to_numpy())},
                "layers": _names(rows),
            }
            title = self._titled(f"{name}: gain by epoch", at)
            low, high = rows.filter(pl.col("epoch") == pl.max("epoch")).select(low=pl.min("mean"), high=pl.max("mean")).row(0)
            words = f"{title}; at the end from {low:.2g} to {high:.2g}"
            spec = _gains(self.family.palette.colours[name], _reach(rows["mean"]), rows["epoch"].n_unique())
            caption = "A line is a layer, the deeper the stronger. 1: what is measured counts alone; 0: what is predicted does."
            charts.append(Chart(spec, data, title, "" if charts else caption, words))
        return [Grid(charts, least=22)] if charts else []

    def moments(self) -> list[Any]:
        """Moments of what normalizers read: by epoch, and by depth at the end."""
        found: list[Any] = []
        known = self.family.layers.filter(pl.col("name").is_in(list(_MOMENTS)))
        for at in known["place"].unique(maintain_order=True).to_list():
            rows = known.filter(place=at)
            charts = [chart for name in _MOMENTS for chart in self._moment(rows.filter(pl.col("name") == name))]
            found.append(Details(self._titled("Moments of what normalizers read", at), [Grid(charts, least=22)]))
        return found

    def _moment(self, rows: pl.DataFrame) -> list[Chart]:
        if rows.is_empty():
            return []
        what, charts, table = rows["name"][0], [], self.family.palette.table
        epochs, depths = rows["epoch"].n_unique(), rows["depth"].n_unique()
        if epochs > 1:
            middle = rows.group_by("normalizer", "epoch", maintain_order=True).agg(pl.median("mean"))
            middle = middle.with_columns(n=place_among(table["normalizer"], "normalizer")).sort("n", "epoch")
            curve: Mapping[str, Column] = {
                "n": middle["n"].to_list(),
                "epoch": (middle["epoch"] + 1).to_list(),
                "mean": packed(middle["mean"].to_numpy()),
            }
            spec = self.specs.curve(what, epochs, logarithmic=_wide(middle["mean"]), bands=False)
            charts.append(
                Chart(
                    spec,
                    {"curve": curve, "names": table},
                    f"{what.capitalize()} by epoch",
                    "Median of the layers.",
                    f"{what} by epoch",
                )
            )
        if depths > 1:
            last = rows.filter(pl.col("epoch") == pl.max("epoch")).select("normalizer", "depth", "layer", "mean")
            spec = self.specs.by_depth(what, depths, logarithmic=_wide(last["mean"]))
            charts.append(
                Chart(
                    spec,
                    {"depth": self.family.palette.columns(last.to_dicts())},
                    f"{what.capitalize()} by depth at the end",
                    "",
                    what,
                )
            )
        return charts


def _reach(shares: pl.Series) -> list[float]:
    """The part of 0 to 1 where they lie, at least a tenth of it, so that what hardly moves is seen hardly to move."""
    low, high = float(shares.min()), float(shares.max())  # type: ignore[arg-type]
    return [max(0.0, math.floor(20 * low - 0.5) / 20), min(1.0, math.ceil(20 * high + 0.5) / 20)]


def _wide(values: pl.Series) -> bool:
    """Whether numbers are best seen on a logarithmic axis."""
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    return low > 0 and high > 20 * low


def _by_epoch(rows: pl.DataFrame) -> dict[str, list[Any]]:
    return {"epoch": (rows["epoch"] + 1).to_list(), "depth": rows["depth"].to_list()}


def _names(rows: pl.DataFrame) -> dict[str, list[Any]]:
    return rows.select("depth", "layer").unique(maintain_order=True).to_dict(as_series=False)

"""The charts of a comparison as Vega-Lite specifications, without data: what is pushed in the key of the page stands out in each."""

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]
ROW = 25  # pixels
_PICK: Spec = {"name": "pick", "value": ""}
_ROOM = 58  # pixels at the right, for words
_FEW = 12  # numbers on an axis or line that are seen one by one
_DASHED = [4, 3]
_POINT: Spec = {"type": "point", "size": 75, "opacity": 1}
_STROKE: Spec = {"type": "tick", "thickness": 1.5, "size": 11}
_RULE: Spec = {"type": "rule", "strokeWidth": 2}
_NAMES = {"normalizer": "nominal", "seed": "ordinal", "layer": "nominal", "ranks": "nominal"}


def axis(title: str, values: Spec | None = None, scale: Spec | None = None) -> Spec:
    """Numbers, of which an axis has about five."""
    return {"type": "quantitative", "title": title, "axis": {"tickCount": 5, **(values or {})}, "scale": scale or {}}


def whole(title: str, number: int) -> Spec:
    """An axis of 1, 2, 3 and so on."""
    few = {"values": list(range(1, number + 1))} if number <= _FEW else {"tickMinStep": 1, "tickCount": 8}
    return axis(title, {"format": "d", **few}, {"zero": False, "nice": False})


def dots(number: int) -> Any:
    """Whether numbers of a line are dots on it."""
    return {"size": 22} if number <= _FEW else False


def height_of(seeds: int) -> int:
    """Of a row with a line for each seed."""
    return max(ROW, 6 * seeds + 10)


def _near(title: str, padding: int = 12) -> Spec:
    """An axis that need not begin at zero."""
    return axis(title, scale={"zero": False, "nice": False, "padding": padding})


def _stretched(title: str, *, logarithmic: bool) -> Spec:
    """An axis as long as the data, where these are far apart a logarithmic one."""
    if logarithmic:
        return axis(title, {"format": "~g"}, {"type": "log", "padding": 4, "nice": False})
    return _near(title, 4)


def _tip(*fields: str) -> list[Spec]:
    return [
        {"field": name, "type": _NAMES[name]} if name in _NAMES else {"field": name, "type": "quantitative", "format": ".4~g"}
        for name in fields
    ]


class Specs:
    """All of them; colours are in the data."""

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline
        self._colour: Spec = {"field": "colour", "type": "nominal", "scale": None, "legend": None}
        grid = {"domain": False, "ticks": False, "labelLimit": 140, "grid": True, "gridOpacity": 0.5}
        self._rows: Spec = {"field": "normalizer", "type": "nominal", "sort": None, "title": None, "axis": grid}

    def _drawn(self, mark: Any, data: str, encoding: Spec, opacity: float = 1.0) -> Spec:
        """A layer of a chart, in colours unless it says otherwise; strong where it is picked, or nothing is."""
        seen = {"condition": {"test": "pick === '' || pick === datum.normalizer", "value": opacity}, "value": 0.08 * opacity}
        common = {"color": self._colour, "detail": {"field": "normalizer"}, "opacity": seen}
        return {"mark": mark, "data": {"name": data}, "encoding": {**common, **encoding}}

    def _chart(self, layers: Sequence[Spec], height: int) -> Spec:
        return {"params": [_PICK], "layer": list(layers), "height": height}

    def _by_row(self, layers: Sequence[Spec], height: int, room: int) -> Spec:
        return {**self._chart(layers, height), "padding": {"left": 0, "right": room, "top": 2, "bottom": 2}}

    def _means(self, x: Spec, tip: Sequence[str]) -> Spec:
        return {"x": {"field": "mean", **x}, "y": self._rows, "tooltip": _tip("normalizer", "mean", *tip)}

    def _intervals(self, x: Spec, means: Spec) -> Spec:
        return self._drawn(_RULE, "means", {**means, "x": {"field": "low", **x}, "x2": {"field": "high"}})

    def _strokes(self, x: Spec, field: str) -> Spec:
        """One for each seed."""
        encoding = {"x": {"field": field, **x}, "y": self._rows, "tooltip": _tip("normalizer", "seed", field)}
        return self._drawn(_STROKE, "seeds", encoding, 0.65)

    def _at_the_right(self, words: str) -> Spec:
        mark = {"type": "text", "align": "left", "dx": 8, "fontSize": 11}
        encoding = {"x": {"value": "width"}, "y": self._rows, "text": {"field": words}, "color": {"value": "var(--dim)"}}
        return self._drawn(mark, "means", encoding)

    def ranking(self, rows: int) -> Spec:
        """Means with intervals, the best first; at the right the ranks that are not ruled out."""
        x = _near("accuracy, %")
        means = self._means(x, ("low", "high", "ranks"))
        layers = [self._intervals(x, means), self._strokes(x, "score"), self._drawn(_POINT, "means", means)]
        return self._by_row([*layers, self._at_the_right("ranks")], rows * ROW, _ROOM)

    def differences(self, rows: int) -> Spec:
        """Paired differences to the baseline with intervals; filled where they are clear."""
        x = axis(f"points beside {self.baseline}", scale={"zero": True, "nice": False, "padding": 12})
        means = self._means(x, ("low", "high"))
        filled = {"condition": {"test": "datum.clear", **self._colour}, "value": "var(--ground)"}
        zero = {
            "mark": {"type": "rule", "color": "var(--dim)", "strokeDash": _DASHED},
            "data": {"name": "zero"},
            "encoding": {"x": {"field": "x", **x}},
        }
        point = {**_POINT, "filled": False, "strokeWidth": 1.75}
        layers = [self._intervals(x, means), zero, self._strokes(x, "score")]
        layers += [self._drawn(point, "means", {**means, "fill": filled}), self._at_the_right("words")]
        return self._by_row(layers, rows * ROW, _ROOM)

    def pairs(self, rows: int, seeds: int) -> Spec:
        """Every seed from the baseline, a stroke, to the normalizer, a dot."""
        x = _near("accuracy, %")
        own, other = {"field": "score", **x}, {"field": "baseline", **x}
        common = {
            "y": {**self._rows, "scale": {"paddingInner": 0.35, "paddingOuter": 0.15}},
            "yOffset": {"field": "seed", "type": "ordinal", "sort": None, "scale": {"paddingOuter": 0.5}},
            "tooltip": _tip("normalizer", "seed", "baseline", "score"),
        }
        line = {**common, "x": other, "x2": {"field": "score"}}
        layers = [
            self._drawn({"type": "rule", "strokeWidth": 1.25}, "pairs", line, 0.7),
            self._drawn({**_STROKE, "size": 7}, "pairs", {**common, "x": other, "color": {"value": "var(--ink)"}}),
            self._drawn({**_POINT, "size": 26}, "pairs", {**common, "x": own}),
        ]
        return self._by_row(layers, rows * height_of(seeds), 12)

    def by_batch(self, sizes: Sequence[int], height: int) -> Spec:
        """Accuracy over batch size: lines through the means, a dot for each seed."""
        scale = {"type": "log", "base": 2, "nice": False, "padding": 18}
        x = {"field": "batch", **axis("batch size", {"values": list(sizes), "format": "d"}, scale)}
        dashes = {"range": [[1, 0], [5, 3], [2, 2], [8, 3, 2, 3]]}
        dash = {"field": "parts", "type": "nominal", "sort": None, "legend": None, "scale": dashes}
        y = _near("accuracy, %")
        means = {"x": x, "y": {"field": "mean", **y}, "tooltip": _tip("normalizer", "batch", "mean")}
        seeds = {"x": x, "y": {"field": "score", **y}, "tooltip": _tip("normalizer", "batch", "seed", "score")}
        layers = [
            self._drawn({"type": "line", "strokeWidth": 2}, "means", {**means, "strokeDash": dash}),
            self._drawn({**_POINT, "size": 55}, "means", means),
            self._drawn({"type": "point", "size": 16}, "seeds", seeds, 0.6),
        ]
        return self._chart(layers, height)

    def curve(self, what: str, epochs: int, *, logarithmic: bool, bands: bool) -> Spec:
        """Something by epoch: the mean over seeds, and how far they reach."""
        fields = ["normalizer", "colour", "band"]
        names = {"lookup": "n", "from": {"data": {"name": "names"}, "key": "n", "fields": fields}}
        x, y = {"field": "epoch", **whole("epoch", epochs)}, _stretched(what, logarithmic=logarithmic)
        tip = _tip("normalizer", "epoch", "mean", *(("low", "high") if bands else ()))
        mean = {"x": x, "y": {"field": "mean", **y}, "tooltip": tip}
        layers = [{**self._drawn({"type": "line", "point": dots(epochs)}, "curve", mean), "transform": [names]}]
        if bands:
            area = self._drawn("area", "curve", {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}, 0.13)
            layers.insert(0, {**area, "transform": [names, {"filter": "datum.band || pick === datum.normalizer"}]})
        return self._chart(layers, 230)

    def cost(self, title: str) -> Spec:
        """What it takes over what it brings; the dashed line joins those that none beats in both."""
        x, y = {"field": "x", **_near(title, 16)}, _near("accuracy, %", 16)
        mark = {"type": "line", "interpolate": "step-after", "strokeDash": _DASHED, "color": "var(--dim)", "strokeWidth": 1}
        front = {"mark": mark, "data": {"name": "front"}, "encoding": {"x": x, "y": {"field": "mean", **y}}}
        reach = {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}
        tip = [*_tip("normalizer", "mean"), {"field": "x", "type": "quantitative", "format": ".3~g", "title": title}]
        means = {"x": x, "y": {"field": "mean", **y}, "tooltip": tip}
        seeds = self._drawn({"type": "rule", "strokeWidth": 1}, "costs", reach, 0.5)
        return self._chart([front, seeds, self._drawn({**_POINT, "size": 90}, "costs", means)], 240)

    def target(self, rows: int) -> Spec:
        """Seconds until the target, a stroke for each seed that came there."""
        x = axis("seconds of training")
        layers = [self._drawn(_POINT, "means", self._means(x, ())), self._strokes(x, "seconds"), self._at_the_right("words")]
        return self._by_row(layers, rows * ROW, _ROOM)

    def by_depth(self, what: str, layers: int, *, logarithmic: bool) -> Spec:
        """A number of every layer, in their order."""
        x = {"field": "depth", **whole("layer, in order", layers)}
        y = {"field": "mean", **_stretched(what, logarithmic=logarithmic)}
        line = {"type": "line", "point": dots(layers)}
        return self._chart([self._drawn(line, "depth", {"x": x, "y": y, "tooltip": _tip("normalizer", "layer", "mean")})], 200)

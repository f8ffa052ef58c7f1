"""The charts of a comparison as Vega-Lite specifications, without data: what is pushed in the key of the page stands out in each."""

from collections.abc import Sequence
from typing import Any

from normsmith.compare.page_data import Palette

Spec = dict[str, Any]
_PICK = {"name": "pick", "value": ""}
ROW = 25  # pixels
_ROOM = 58  # pixels at the right, for words
_DASHED = [4, 3]
_FEW = 12  # numbers on an axis or line that are seen one by one


def _axis(title: str, **more: Any) -> Spec:
    return {"type": "quantitative", "title": title, **more}


def _near(title: str, **more: Any) -> Spec:
    """An axis that need not begin at zero."""
    scale = {"zero": False, "nice": False, "padding": 12, **more.pop("scale", {})}
    return _axis(title, scale=scale, axis={"tickCount": 5, **more})


def _stretched(title: str, *, logarithmic: bool) -> Spec:
    """An axis as long as the data, where these are far apart a logarithmic one."""
    scale: Spec = {"padding": 4, "nice": False, **({"type": "log"} if logarithmic else {"zero": False})}
    return _axis(title, scale=scale, axis={"tickCount": 5, **({"format": "~g"} if logarithmic else {})})


def whole(title: str, number: int) -> Spec:
    """An axis of 1, 2, 3 and so on."""
    few = {"values": list(range(1, number + 1))} if number <= _FEW else {"tickMinStep": 1}
    return _axis(title, scale={"zero": False, "nice": False}, axis={"format": "d", **few})


def dots(number: int) -> Any:
    """Whether numbers of a line are dots on it."""
    return {"size": 22} if number <= _FEW else False


def height_of(seeds: int) -> int:
    """Of a row with a line for each seed."""
    return max(ROW, 6 * seeds + 10)


def _tooltip(*fields: str) -> list[Spec]:
    of = {
        "normalizer": {"type": "nominal"},
        "seed": {"type": "ordinal"},
        "layer": {"type": "nominal"},
        "ranks": {"type": "nominal"},
    }
    return [{"field": name, **of.get(name, {"type": "quantitative", "format": ".3~f"})} for name in fields]


class Specs:
    """All of them in the colours of a page."""

    def __init__(self, palette: Palette, baseline: str) -> None:
        self.baseline = baseline
        names, colours = list(palette.colours), list(palette.colours.values())
        self._colour: Spec = {
            "field": "normalizer",
            "type": "nominal",
            "scale": {"domain": names, "range": colours},
            "legend": None,
        }
        self._rows: Spec = {
            "field": "normalizer",
            "type": "nominal",
            "sort": None,
            "title": None,
            "axis": {"domain": False, "ticks": False, "labelLimit": 140, "grid": True, "gridOpacity": 0.5},
        }

    def _seen(self, opacity: float = 1.0) -> Spec:
        """The opacity of what is picked, or of all where nothing is."""
        return {"condition": {"test": "pick === '' || pick === datum.normalizer", "value": opacity}, "value": 0.08 * opacity}

    def _drawn(self, mark: Any, data: str, opacity: float = 1.0, **encoding: Any) -> Spec:
        """A layer of a chart, in colours unless it says otherwise."""
        found = {"color": self._colour, "opacity": self._seen(opacity), **encoding}
        return {"mark": mark, "data": {"name": data}, "encoding": {k: v for k, v in found.items() if v is not None}}

    def _chart(self, layers: Sequence[Spec], **more: Any) -> Spec:
        return {"params": [_PICK], "layer": list(layers), **more}

    def _by_row(self, layers: Sequence[Spec], rows: int, height: int = ROW, room: int = 0) -> Spec:
        return self._chart(layers, height=rows * height, padding={"left": 0, "right": room, "top": 2, "bottom": 2})

    def _words_at_the_right(self, data: str, words: str) -> Spec:
        mark = {"type": "text", "align": "left", "dx": 8, "fontSize": 11}
        encoding = {"x": {"value": "width"}, "y": self._rows, "text": {"field": words}, "color": {"value": "var(--dim)"}}
        return self._drawn(mark, data, **encoding)

    def ranking(self, rows: int) -> Spec:
        """Means with intervals, the best first; at the right the ranks that are not ruled out."""
        x = _near("accuracy, %")
        seeds = {"x": {"field": "score", **x}, "y": self._rows, "tooltip": _tooltip("normalizer", "seed", "score")}
        means = {
            "x": {"field": "mean", **x},
            "y": self._rows,
            "tooltip": _tooltip("normalizer", "mean", "low", "high", "ranks"),
        }
        return self._by_row(
            [
                self._drawn(
                    {"type": "rule", "strokeWidth": 2}, "means", **{**means, "x": {"field": "low", **x}}, x2={"field": "high"}
                ),
                self._drawn({"type": "tick", "thickness": 1.5, "size": 11}, "seeds", 0.65, **seeds),
                self._drawn({"type": "point", "size": 75, "opacity": 1}, "means", **means),
                self._words_at_the_right("means", "ranks"),
            ],
            rows,
            room=_ROOM,
        )

    def differences(self, rows: int) -> Spec:
        """Paired differences to the baseline with intervals; filled where they are clear."""
        x = _near(f"points beside {self.baseline}", scale={"zero": True})
        seeds = {"x": {"field": "score", **x}, "y": self._rows, "tooltip": _tooltip("normalizer", "seed", "score")}
        means = {"x": {"field": "mean", **x}, "y": self._rows, "tooltip": _tooltip("normalizer", "mean", "low", "high")}
        clear = {"condition": {"test": "datum.clear", **self._colour}, "value": "var(--ground)"}
        zero = {
            "mark": {"type": "rule", "color": "var(--dim)", "strokeDash": _DASHED},
            "data": {"name": "zero"},
            "encoding": {"x": {"field": "x", **x}},
        }
        point = {"type": "point", "size": 75, "filled": False, "strokeWidth": 1.75, "opacity": 1}
        return self._by_row(
            [
                self._drawn(
                    {"type": "rule", "strokeWidth": 2}, "means", **{**means, "x": {"field": "low", **x}}, x2={"field": "high"}
                ),
                zero,
                self._drawn({"type": "tick", "thickness": 1.5, "size": 11}, "seeds", 0.65, **seeds),
                self._drawn(point, "means", fill=clear, **means),
                self._words_at_the_right("means", "words"),
            ],
            rows,
            room=_ROOM,
        )

    def pairs(self, rows: int, seeds: int) -> Spec:
        """Every seed from the baseline, a stroke, to the normalizer, a dot."""
        x = _near("accuracy, %")
        offset = {"field": "seed", "type": "ordinal", "sort": None, "scale": {"paddingOuter": 0.5}}
        common = {
            "y": {**self._rows, "scale": {"paddingInner": 0.35, "paddingOuter": 0.15}},
            "yOffset": offset,
            "tooltip": _tooltip("normalizer", "seed", "baseline", "score"),
        }
        own, other = {"field": "score", **x}, {"field": "baseline", **x}
        tick = {"type": "tick", "thickness": 1.5, "size": 7}
        layers = [
            self._drawn({"type": "rule", "strokeWidth": 1.25}, "pairs", 0.7, x=other, x2={"field": "score"}, **common),
            self._drawn(tick, "pairs", x=other, **{**common, "color": {"value": "var(--ink)"}}),
            self._drawn({"type": "point", "size": 26, "opacity": 1}, "pairs", x=own, **common),
        ]
        return self._by_row(layers, rows, height_of(seeds), 12)

    def by_batch(self, sizes: Sequence[int], height: int) -> Spec:
        """Accuracy over batch size: lines through the means, a dot for each seed."""
        x = {
            "field": "batch",
            **_axis(
                "batch size",
                scale={"type": "log", "base": 2, "nice": False, "padding": 18},
                axis={"values": list(sizes), "format": "d"},
            ),
        }
        dash = {
            "field": "parts",
            "type": "nominal",
            "sort": None,
            "legend": None,
            "scale": {"range": [[1, 0], [5, 3], [2, 2], [8, 3, 2, 3]]},
        }
        y = _near("accuracy, %")
        means = {"x": x, "y": {"field": "mean", **y}, "tooltip": _tooltip("normalizer", "batch", "mean")}
        return self._chart(
            [
                self._drawn({"type": "line", "strokeWidth": 2}, "means", strokeDash=dash, **means),
                self._drawn({"type": "point", "size": 55, "opacity": 1}, "means", **means),
                self._drawn(
                    {"type": "point", "size": 16},
                    "seeds",
                    0.6,
                    x=x,
                    y={"field": "score", **y},
                    tooltip=_tooltip("normalizer", "batch", "seed", "score"),
                ),
            ],
            height=height,
        )

    def curve(self, what: str, epochs: int, *, logarithmic: bool, bands: bool) -> Spec:
        """Something by epoch: the mean over seeds, and how far they reach."""
        names = {"lookup": "n", "from": {"data": {"name": "names"}, "key": "n", "fields": ["normalizer", "band"]}}
        x = {"field": "epoch", **whole("epoch", epochs)}
        y = _stretched(what, logarithmic=logarithmic)
        line = self._drawn(
            {"type": "line", "point": dots(epochs)},
            "curve",
            x=x,
            y={"field": "mean", **y},
            tooltip=_tooltip("normalizer", "epoch", "mean", "low", "high"),
        )
        area = self._drawn("area", "curve", 0.13, x=x, y={"field": "low", **y}, y2={"field": "high"}, tooltip=None)
        area["transform"] = [names, {"filter": "datum.band || pick === datum.normalizer"}]
        line["transform"] = [names]
        return self._chart([*([area] if bands else []), line], height=230)

    def cost(self, title: str) -> Spec:
        """What it takes over what it brings; the dashed line joins those that none beats in both."""
        x, y = _near(title, scale={"padding": 16}), _near("accuracy, %", scale={"padding": 16})
        front = {
            "mark": {
                "type": "line",
                "interpolate": "step-after",
                "strokeDash": _DASHED,
                "color": "var(--dim)",
                "strokeWidth": 1,
            },
            "data": {"name": "front"},
            "encoding": {"x": {"field": "x", **x}, "y": {"field": "mean", **y}},
        }
        place = {"x": {"field": "x", **x}, "y": {"field": "mean", **y}}
        tip = [{"field": "x", "type": "quantitative", "format": ".3~g", "title": title}]
        more = {"tooltip": [*_tooltip("normalizer", "mean"), *tip]}
        bars = self._drawn(
            {"type": "rule", "strokeWidth": 1}, "costs", 0.5, **{**place, "y": {"field": "low", **y}}, y2={"field": "high"}
        )
        return self._chart(
            [front, bars, self._drawn({"type": "point", "size": 90, "opacity": 1}, "costs", **place, **more)], height=240
        )

    def target(self, rows: int) -> Spec:
        """Seconds until the target, a stroke for each seed that came there."""
        x = _axis("seconds of training", axis={"tickCount": 5})
        seeds = {"x": {"field": "seconds", **x}, "y": self._rows, "tooltip": _tooltip("normalizer", "seed", "seconds")}
        means = {"x": {"field": "median", **x}, "y": self._rows, "tooltip": _tooltip("normalizer", "median")}
        return self._by_row(
            [
                self._drawn({"type": "point", "size": 75, "opacity": 1}, "medians", **means),
                self._drawn({"type": "tick", "thickness": 1.5, "size": 11}, "seeds", 0.65, **seeds),
                self._words_at_the_right("medians", "words"),
            ],
            rows,
            room=_ROOM,
        )

    def by_depth(self, what: str, layers: int, *, logarithmic: bool) -> Spec:
        """A number of every layer, in their order."""
        x = {"field": "depth", **whole("layer, in order", layers)}
        line = {"type": "line", "point": dots(layers)}
        y = {"field": "mean", **_stretched(what, logarithmic=logarithmic)}
        return self._chart([self._drawn(line, "depth", x=x, y=y, tooltip=_tooltip("normalizer", "layer", "mean"))], height=200)

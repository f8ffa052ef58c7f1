"""The charts of an examination as Vega-Lite specifications, without data: one for all layers."""

from typing import Any

LEVELS = {"": "var(--dim)", "info": "var(--info)", "warning": "var(--warning)", "error": "var(--error)"}
_OTHER = {"color": "var(--series-2)"}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"type": "quantitative", "title": title, **more}


def _drawn(mark: dict[str, Any], x: dict[str, Any], y: dict[str, Any], data: str = "", **more: Any) -> dict[str, Any]:
    """One layer of a chart."""
    return {"mark": mark, "encoding": {"x": x, "y": y, **more}, **({"data": {"name": data}} if data else {})}


def _tooltip(*keys: str) -> list[dict[str, Any]]:
    return [{"field": key, "type": "quantitative", "format": ".3~g"} for key in keys]


def across(*, limits: bool) -> dict[str, Any]:
    """A number of every layer, in their order; with lines where a finding begins if there are `limits`. Without, it may be negative."""
    order = _axis("layer, in order", axis={"tickMinStep": 1, "format": "d"}, scale={"zero": False, "nice": False, "padding": 8})
    colour = {"field": "level", "type": "nominal", "legend": None}
    points = _drawn(
        {"type": "point", "size": 44, "opacity": 1, "cursor": "pointer"},
        {"field": "at", **order},
        {"field": "y", **_axis("", scale={"type": "sqrt" if limits else "symlog"}, axis={"format": "~g", "title": None})},
        "layers",
        color={**colour, "scale": {"domain": list(LEVELS), "range": list(LEVELS.values())}},
        tooltip=[{"field": "entry", "type": "nominal", "title": "layer"}, *_tooltip("y")],
    )
    line = {"mark": {"type": "rule", "strokeDash": [4, 3]}, "data": {"name": "limits"}}
    return {
        "height": 150,
        "layer": [*([{**line, "encoding": {"y": {"field": "y", "type": "quantitative"}}}] if limits else []), points],
    }


_DENSITY = _axis("density", axis={"format": "~g"})
HISTOGRAM = {
    "data": {"name": "bars"},
    "layer": [
        _drawn(
            {"type": "bar", "opacity": 0.75, "binSpacing": 0},
            {"field": "from", "bin": "binned", **_axis("deviations from the mean of the channel")},
            {"field": "density", **_DENSITY},
            x2={"field": "to"},
        ),
        _drawn(
            {"type": "line", "interpolate": "monotone", **_OTHER},
            {"field": "z", "type": "quantitative"},
            {"field": "gaussian", **_DENSITY},
        ),
    ],
}

_SHARE = _axis("share of elements", scale={"type": "log"}, axis={"format": "~e", "tickCount": 5})
_BEYOND = {
    "field": "t",
    **_axis(
        "further out than so many deviations",
        scale={"type": "log", "nice": False},
        axis={"values": [0.5, 1, 2, 3, 4, 5, 7, 10, 20, 50, 100], "format": "~g"},
    ),
}
TAIL = {
    "data": {"name": "tail"},
    "layer": [
        _drawn({"type": "line", **_OTHER}, _BEYOND, {"field": "gaussian", **_SHARE}),
        _drawn({"type": "line", "strokeWidth": 2.25}, _BEYOND, {"field": "data", **_SHARE}),
    ],
}


def against(what: str) -> dict[str, Any]:
    """Running statistics over those of the data, with the line on which they are the same."""
    x, y = (
        _axis(title, scale={"zero": False}, axis={"format": "~g", "tickCount": 5})
        for title in (f"{what} of the data", f"running {what}")
    )
    line = {"type": "line", "color": "var(--dim)", "strokeDash": [4, 3], "strokeWidth": 1}
    return {
        "layer": [
            _drawn(line, {"field": "v", **x}, {"field": "v", **y}, "same"),
            _drawn(
                {"type": "point", "opacity": 0.6, "size": 28},
                {"field": "data", **x},
                {"field": "running", **y},
                "channels",
                tooltip=_tooltip("channel", "data", "running"),
            ),
        ]
    }


def noise() -> dict[str, Any]:
    """Noise by batch size, of mean and deviation: measured, and by theory."""
    batch = {"field": "batch", **_axis("batch size", scale={"type": "log", "base": 2}, axis={"format": "d"})}
    y = {"field": "noise", **_axis("deviations", scale={"type": "log"}, axis={"format": "~g", "tickCount": 5})}
    names = {"field": "of", "type": "nominal", "title": None, "scale": {"range": ["var(--series-1)", "var(--series-2)"]}}
    lines, points = (
        _drawn(mark, batch, y, data, color=names)
        for mark, data in (({"type": "line", "strokeDash": [4, 3]}, "theory"), ({"type": "line", "point": True}, "measured"))
    )
    return {"layer": [lines, points]}

"""The charts of an examination: specifications with data, captions, and words for those who do not see them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normsmith.doctor import page_specs
from normsmith.doctor.layer_page import LayerView, histogram, tail
from normsmith.report import Chart, Grid, Heatmap, Level, Picture, packed

_LIMITS = {"gap": (0.3, 1.0), "noise": (0.25,), "excess kurtosis": ()}
_TITLES = {
    "gap": "Train/eval gap",
    "noise": "Noise of batch means",
    "excess kurtosis": "Excess kurtosis, median channel",
}
_CAPTIONS = {
    "gap": "Distance of the outputs in evaluation from those in training, relative to the output. Lines: warning, error.",
    "noise": "Scatter of the means of the batches given, in deviations. Line: warning.",
    "excess kurtosis": "0 for a Gaussian.",
}
_AGAINST = {what: page_specs.against(what) for what in ("mean", "deviation")}
_ACROSS = {limits: page_specs.across(limits=limits) for limits in (False, True)}


def across(table: Sequence[Mapping[str, Any]], worst: Mapping[str, Level]) -> list[Chart]:
    """What was measured in the layers, in their order."""
    charts = []
    for key, limits in _LIMITS.items():
        rows = [(at, row) for at, row in enumerate(table, 1) if row.get(key) is not None]
        if len(rows) > 1:
            layers = {
                "at": [at for at, _ in rows],
                "y": [max(0.0, row[key]) for _, row in rows],
                "entry": [row["layer"] for _, row in rows],
                "level": [worst[row["layer"]] for _, row in rows],
            }
            top = max(layers["y"])
            words = f"{_TITLES[key]} of {len(rows)} layers, from {min(layers['y']):.3g} to {top:.3g}"
            lines = [limit for limit in limits if limit < 3 * top]
            data = {"layers": layers, **({"limits": {"y": lines}} if lines else {})}
            charts.append(Chart(_ACROSS[bool(lines)], data, _TITLES[key], _CAPTIONS[key], words))
    return charts


def of_layer(view: LayerView, columns: int) -> list[Any]:
    """Everything that is known of one layer."""
    pieces: list[Any] = []
    if view.profile is not None:
        pieces.append(Grid([_histogram(view), _tail(view)]))
    if view.channels:
        chosen = view.representatives(columns)
        pieces.append(_heatmap(view, chosen))
        against = [_chart_against(view, chosen, what) for what in _AGAINST if f"running {what}" in view.channels]
        if against:
            pieces.append(Grid(against))
    if view.noise:
        pieces.append(Grid([_noise(view)]))
    if view.samples:
        pictures = [
            Picture(s.png, f"sample {s.index}", f"sample {s.index}{', ' + s.label if s.label else ''}: {s.score:.3g}")
            for s in view.samples
            if s.png
        ]
        pieces.append(Grid(pictures, least=7))
    return pieces


def _histogram(view: LayerView) -> Chart:
    assert view.profile is not None
    middles, density, gaussian = histogram(view.profile)
    half = (middles[1] - middles[0]) / 2
    bars = {
        "from": [z - half for z in middles],
        "to": [z + half for z in middles],
        "z": middles,
        "density": density,
        "gaussian": gaussian,
    }
    return Chart(
        page_specs.HISTOGRAM,
        {"bars": bars},
        "Activations that it reads",
        "All channels, each brought to mean 0 and deviation 1; the line is a Gaussian.",
        f"Histogram of what {view.name} reads, beside a Gaussian",
    )


def _tail(view: LayerView) -> Chart:
    assert view.profile is not None
    steps, data, gaussian = tail(view.profile)
    held = [(t, share) for t, share in zip(steps, data, strict=True) if share is not None]
    words = (
        f"{held[-1][1]:.2g} of the elements lie further than {held[-1][0]:.3g} deviations from the mean"
        if held
        else "no elements"
    )
    return Chart(
        page_specs.TAIL,
        {"tail": {"t": steps, "data": data, "gaussian": gaussian}},
        "Outliers",
        "Share of elements that lie further out, on two logarithmic axes; the thin line is a Gaussian.",
        words,
    )


def _heatmap(view: LayerView, chosen: Tensor) -> Heatmap:
    caption = (
        "Blue is below the median of the row, orange above; full colour from ten times as far as half of the channels are."
    )
    if len(chosen) < view.size:
        caption += f" Of {view.size} channels {len(chosen)} are shown: of neighbours the one furthest from what is usual."
    rows = {key: packed(values[chosen]) for key, values in view.channels.items() if len(torch.unique(values)) > 1}
    return Heatmap(rows, chosen.tolist(), "channel", "Channels", caption)


def _chart_against(view: LayerView, chosen: Tensor, what: str) -> Chart:
    data, running = view.channels[what][chosen], view.channels[f"running {what}"][chosen]
    held = torch.cat([data, running])
    held = held[held.isfinite()]
    ends = [float(held.min()), float(held.max())] if len(held) else []
    return Chart(
        _AGAINST[what],
        {"channels": {"channel": chosen.tolist(), "data": packed(data), "running": packed(running)}, "same": {"v": ends}},
        f"Running {what} against the data",
        "A dot is a channel; on the line evaluation does what training does.",
        f"Running {what} over the {what} of the data, channel by channel",
    )


def _noise(view: LayerView) -> Chart:
    columns = zip(*view.noise, strict=True)
    return Chart(
        page_specs.NOISE,
        {"noise": dict(zip(("batch", "measured", "theory"), map(list, columns), strict=True))},
        "Noise by batch size",
        "How far the means of batches scatter, in deviations: measured, and by theory in the other colour.",
        f"Noise from batch size {view.noise[0].batch} to {view.noise[-1].batch}",
    )

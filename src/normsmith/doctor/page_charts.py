"""The charts of an examination: specifications with data, captions, and words for those who do not see them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normsmith.doctor import page_specs
from normsmith.doctor.channel_pictures import png
from normsmith.doctor.layer_page import LayerView, Shape, shape_of
from normsmith.doctor.samples import Sample
from normsmith.report import Chart, Facts, Grid, Heatmap, Level, Picture, Table, packed

PICTURES = 1_200_000  # bytes of samples on a page
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
_NOISE = page_specs.noise()
_ACROSS = {limits: page_specs.across(limits=limits) for limits in (False, True)}


def across(table: Sequence[Mapping[str, Any]], worst: Mapping[str, Level]) -> list[Chart]:
    """What was measured in the layers, in their order."""
    charts = []
    for key, limits in _LIMITS.items():
        rows = [(at, row) for at, row in enumerate(table, 1) if row.get(key) is not None]
        if len(rows) > 1:
            layers = {
                "at": [at for at, _ in rows],
                "y": [row[key] for _, row in rows],
                "entry": [row["layer"] for _, row in rows],
                "level": [worst[row["layer"]] for _, row in rows],
            }
            top = max(layers["y"])
            words = f"{_TITLES[key]} of {len(rows)} layers, from {min(layers['y']):.3g} to {top:.3g}"
            lines = [limit for limit in limits if limit < 3 * top]
            data = {"layers": layers, **({"limits": {"y": lines}} if lines else {})}
            charts.append(Chart(_ACROSS[bool(lines)], data, _TITLES[key], _CAPTIONS[key], words))
    return charts


def of_layer(view: LayerView, columns: int, album: Mapping[int, bytes]) -> list[Any]:
    """Everything that is known of one layer; `album` has pictures of samples by their index."""
    pieces: list[Any] = []
    if view.profile is not None:
        shape = shape_of(view.profile)
        pieces.append(Grid([_histogram(view, shape), _tail(shape)]))
    if view.channels:
        chosen = view.representatives(columns)
        pieces.append(_heatmap(view, chosen))
        more = [_chart_against(view, chosen, what) for what in _AGAINST if f"running {what}" in view.channels]
        more += [_noise(view)] if view.noise else []
        pieces += [Grid(more)] if more else []
    if view.facts:
        pieces.append(Facts(view.facts))
    if view.samples:
        pieces.append(_samples(view.samples, album))
    return pieces


def _histogram(view: LayerView, shape: Shape) -> Chart:
    half = (shape.middles[1] - shape.middles[0]) / 2
    bars = {
        "from": [z - half for z in shape.middles],
        "to": [z + half for z in shape.middles],
        "z": shape.middles,
        "density": shape.density,
        "gaussian": shape.gaussian,
    }
    return Chart(
        page_specs.HISTOGRAM,
        {"bars": bars},
        "Activations that it reads",
        "All channels, each brought to mean 0 and deviation 1; the line is a Gaussian.",
        f"Histogram of what {view.name} reads, beside a Gaussian",
    )


def _tail(shape: Shape) -> Chart:
    held = [(t, share) for t, share in zip(shape.beyond, shape.share, strict=True) if share is not None]
    words = f"{held[-1][1]:.2g} of the elements lie further than {held[-1][0]:.3g} deviations from the mean" if held else "none"
    return Chart(
        page_specs.TAIL,
        {"tail": {"t": shape.beyond, "data": shape.share, "gaussian": shape.gaussian_share}},
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
    batches = [point.batch for point in view.noise] * 2
    of = ["mean"] * len(view.noise) + ["deviation"] * len(view.noise)
    measured = [p.mean_noise for p in view.noise] + [p.std_noise for p in view.noise]
    theory = [p.theory_mean for p in view.noise] + [p.theory_std for p in view.noise]
    first, last = view.noise[0], view.noise[-1]
    return Chart(
        _NOISE,
        {name: {"batch": batches, "of": of, "noise": values} for name, values in (("measured", measured), ("theory", theory))},
        "Noise by batch size",
        "How far mean and deviation of a batch scatter, in deviations. Dashed: theory, were all elements independent.",
        f"Noise of the mean: {first.mean_noise:.2g} at batch size {first.batch}, {last.mean_noise:.2g} at {last.batch}",
    )


def album_of(views: Iterable[LayerView]) -> dict[int, bytes]:
    """Pictures of the samples of these layers, the first ones first, as many as a page can carry."""
    album: dict[int, bytes] = {}
    room = PICTURES
    for sample in (sample for view in views for sample in view.samples):
        if sample.thumbnail is not None and sample.index not in album and room > 0:
            album[sample.index] = png(sample.thumbnail)
            room -= len(album[sample.index])
    return album


def _samples(samples: Sequence[Sample], album: Mapping[int, bytes]) -> Grid | Table:
    """With their pictures if all have one."""
    if not all(sample.index in album for sample in samples):
        rows = [[f"sample {s.index}", s.label, s.score, s.channel] for s in samples]
        return Table(["furthest out", "class", "deviations", "channel"], rows)
    found = []
    for sample in samples:
        label = "" if sample.label is None else f", class {sample.label}"
        words = f"sample {sample.index}{label}"
        caption = f"{words}: {sample.score:.3g} deviations in channel {sample.channel}"
        found.append(Picture(album[sample.index], words, caption))
    return Grid(found, least=6, title="Samples furthest out")

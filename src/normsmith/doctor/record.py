"""What was measured of a layer, as plain data: a row of the table, and what has no place in a table."""

from dataclasses import asdict
from typing import Any

from normsmith.doctor.checks._gap import gap
from normsmith.doctor.checks.small_batch import noise
from normsmith.doctor.noise import independent
from normsmith.doctor.observation import Layer, Observation


def record(layer: Layer, seen: Observation) -> dict[str, Any]:
    """The numbers of one layer, None where there are none."""
    tracked, moved = layer.tracked and layer.reached, seen.batches > 1 and layer.reached
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "method": layer.source.method,
        "channels": layer.source.num_features if isinstance(layer.source.num_features, int) else None,
        "calls": layer.calls,
        "positions": layer.positions,
        "largest input": layer.largest,
        "excess kurtosis": float(layer.profile.moments.kurtosis.median())
        if layer.profile
        else None,  # of the channel in the middle
        "largest score": layer.top_samples[0].score if layer.top_samples else None,
        "gap": gap(layer).size if tracked else None,
        "gap if adapted": layer.shift.adapted if layer.shift else None,
        "shift": layer.shift.wasserstein if layer.shift else None,
        "noise": noise(layer) if moved else None,
        "independent positions": independent(layer.noise_curve),
        "format flips": layer.flips,
        "seconds": layer.seconds,
        **(seen.closer.record(layer.name) if seen.closer else {}),
    }


def details(layer: Layer) -> dict[str, Any]:
    """The noise by batch size, the samples furthest out (without their pictures), consistency and shift."""
    return {
        "noise curve": [dict(vars(point)) for point in layer.noise_curve],
        "top samples": [
            {"index": s.index, "label": s.label, "channel": s.channel, "score": s.score} for s in layer.top_samples
        ],
        "specificity": asdict(layer.specificity) if layer.specificity else None,
        "consistency": asdict(layer.consistency) if layer.consistency else None,
        "shift details": asdict(layer.shift) if layer.shift else None,
    }

"""NS209: normalizers that change the memory format. For information: it costs time, no accuracy.

Counted are calls whose input is channels_last and whose output is not, or the reverse: the layers behind work in the other format, or copy.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found: dict[str, dict[str, float | str]] = {
        layer.name: {"calls": float(layer.flips), "of": float(layer.calls), "format": layer.flip}
        for layer in seen.layers
        if layer.flips
    }
    if found:
        yield Finding(
            "NS209",
            "a normalizer changes the memory format",
            "info",
            tuple(found),
            found,
            "These layers read one memory format and give another. The convolutions behind them then run in the slower format, or copy.",
            "ns.convert(model, where=lambda layer, name: name in names, to=...)  # our layers keep the format",
            ("pytorch#111824", "pytorch#59168"),
        )

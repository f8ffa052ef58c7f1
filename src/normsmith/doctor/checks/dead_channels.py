"""NS105: channels that are constant over all the data.

A channel is dead if its deviation is under 1e-6 of the layer's largest, or of its own mean. A warning from a tenth of a layer's channels
on, else for information.
"""

from collections.abc import Iterator

from torch import Tensor

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Layer, Observation

DEAD, SHARE = 1e-6, 0.1


def is_dead(layer: Layer) -> Tensor:
    """Which channels are constant."""
    moments = layer.moments
    assert moments is not None
    deviation, mean = moments.var.flatten().sqrt(), moments.mean.flatten().abs()
    return deviation <= DEAD * mean.maximum(deviation.max())


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers, as severe as the worst."""
    found = {}
    for layer in seen.layers:
        if not layer.reached or seen.samples < 2:
            continue
        dead = is_dead(layer)
        if bool(dead.any()):
            found[layer.name] = {"dead": float(dead.sum()), "of": float(dead.numel())}
    if found:
        worst = max(numbers["dead"] / numbers["of"] for numbers in found.values())
        yield Finding(
            "NS105",
            "channels are constant",
            "warning" if worst >= SHARE else "info",
            tuple(found),
            found,
            "What these channels read does not vary over the data: their output is their bias, and their weight gets no gradient. "
            "Usual causes: a ReLU that never opens after a large step, weights at zero, channels that were pruned.",
            "ns.examine(model, train_loader)  # to see whether they live on other data; if not, re-initialize what feeds them",
        )

"""NS206: a bias that the next layer takes away again. For information: it costs a parameter and a little time, no accuracy."""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation
from normsmith.methods.catalog import CATALOG


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.layers:
        takes_it = "channel shift" in CATALOG[layer.source.method].invariances
        if layer.biased and takes_it and not getattr(layer.module, "frozen", False):
            found[layer.name] = {"bias of": layer.before}
    if found:
        yield Finding(
            "NS206",
            "a bias right before a normalizer",
            "info",
            tuple(found),
            found,
            "The layer before has a bias per channel, which the normalizer subtracts with the mean: the bias gets no gradient in training.",
            "ns.fold(model, example)  # for inference; when building the model: bias=False in the layer before",
        )

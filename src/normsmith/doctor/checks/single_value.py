"""NS202: a layer whose statistics would be of a single value in training.

A batch of one sample, at one position: torch and we raise an error there. An error if the data given have such a batch.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {
        layer.name: {"positions": float(layer.positions), "smallest batch": float(min(layer.samples))}
        for layer in seen.layers
        if layer.by_batch and layer.positions == 1 and layer.samples and min(layer.samples) == 1
        and getattr(layer.module, "on_single", "error") == "error"
    }  # fmt: skip
    if found:
        yield Finding(
            "NS202",
            "one value per channel",
            "error",
            tuple(found),
            found,
            'Training on these batches raises "Expected more than 1 value per channel when training": a batch of one sample reaches a '
            "layer behind global pooling, often the last batch of an epoch.",
            "ns.convert(model, {name: \"batch:on_single='running'\"})  # or drop_last=True in the loader",
            ("fastai#1352", "pytorch-semseg#214"),
        )

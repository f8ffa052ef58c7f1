"""NS106: an average over more batches than an epoch has. For information: 1 / momentum batches is how far back it reaches."""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    steps, found = seen.steps_per_epoch, {}
    if steps is None:
        return
    for layer in seen.tracked():
        momentum = getattr(layer.module, "momentum", None)
        if layer.by_batch and momentum and 1 / momentum > steps:
            found[layer.name] = {"batches in the average": 1 / momentum, "batches in the loader": float(steps)}
    if found:
        yield Finding(
            "NS106",
            "the average reaches over more than an epoch",
            "info",
            tuple(found),
            found,
            "momentum is the weight of the newest batch (other frameworks mean one minus it). Where 1 / momentum is more than the batches "
            "given, the running statistics lag behind the weights if these batches are an epoch of training.",
            "ns.recalibrate(model, train_loader)",
            ("pytorch#15298",),
        )

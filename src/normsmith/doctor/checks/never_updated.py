"""NS101: running statistics that no batch has moved.

Found where `num_batches_tracked` is 0 and mean and variance are exactly 0 and 1. An error: the layer passes its input through. Not where
the data have these statistics anyway (gap below 0.1).
"""

from collections.abc import Iterator

from normsmith.doctor.checks._gap import gap
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Layer, Observation


def is_new(layer: Layer) -> bool:
    """Whether the statistics are those a layer is born with."""
    tracked = getattr(layer.module, "num_batches_tracked", None)
    if tracked is None or int(tracked.max()) > 0:
        return False
    mean, var = layer.running()
    return not bool(mean.any()) and bool((var == 1).all())


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {layer.name: {"gap": gap(layer).size} for layer in seen.tracked() if is_new(layer) and gap(layer).size > 0.1}
    if found:
        yield Finding(
            "NS101",
            "running statistics were never updated",
            "error",
            tuple(found),
            found,
            "These layers keep running statistics, but no training forward has moved them: they are still mean 0 and variance 1, so "
            "in evaluation the layers pass their input through. Usual causes: a checkpoint without buffers, layers that were always in "
            "eval(), a conversion that dropped the statistics.",
            "ns.recalibrate(model, loader)",
            ("pytorch#4741", "pytorch#12528"),
        )

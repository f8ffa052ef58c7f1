"""NS203: one layer with running statistics for inputs that differ.

A warning where a layer is called several times in a forward and the means of the calls lie more than half a deviation apart: the running
statistics are then those of none of them. Not where they are kept for each step, as in a recurrent layer of ours.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation
from normsmith.recurrent.step_batch import StepBatchNorm

APART = 0.5


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {
        layer.name: {"calls in a forward": float(layer.calls_in_forward), "means apart by deviations": layer.apart}
        for layer in seen.tracked()
        if layer.by_batch and layer.calls_in_forward > 1 and layer.apart > APART and not isinstance(layer.module, StepBatchNorm)
    }
    if found:
        yield Finding(
            "NS203",
            "one layer normalizes different things",
            "warning",
            tuple(found),
            found,
            "These layers run several times in a forward, on inputs with different statistics. In training each call is normalized by its "
            "own, in evaluation all by one average, which fits none.",
            'ns.convert(model, {name: "group"})  # without running statistics; or give each call a layer of its own',
            ("pytorch#1738", "darts#28"),
        )

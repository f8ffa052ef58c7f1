"""NS109: statistics that move more than once for a step of the optimizer. Needs `optimizer=`, of a kind that counts its steps.

Updates per step are `num_batches_tracked`, over the steps and over the calls of the layer in a forward. Looked at is a whole number from 2
on, to 2 %: a model that was trained on from a checkpoint has any ratio. A warning where other layers have half as many or less: then these
are recomputed, as by activation checkpointing. The same number for all layers may be micro-batches as well, for information.
Layers with `accumulate=` count their steps, and our layers know a recomputed forward.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

MOST, OFF = 64, 0.02


def optimizer_steps(seen: Observation) -> int:
    """How many steps the optimizer has taken with parameters of this model; 0 if it does not say."""
    if seen.optimizer is None:
        return 0
    states = (seen.optimizer.state.get(parameter, {}) for parameter in seen.model.parameters())
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    steps = optimizer_steps(seen)
    if seen.optimizer is not None and not steps:
        seen.missing.append("updates of statistics per step: the optimizer keeps no count of its steps")
    rates = {}
    for layer in seen.tracked() if steps else ():
        tracked = getattr(layer.module, "num_batches_tracked", None)
        if layer.by_batch and tracked is not None:
            rates[layer.name] = int(tracked.max()) / (steps * max(layer.calls_in_forward, 1))
    found = {
        name: {"updates per step": rate, "steps": float(steps)}
        for name, rate in rates.items()
        if 2 <= round(rate) <= MOST and abs(rate - round(rate)) <= OFF * rate
    }
    if found:
        least = min(rate for rate in rates.values() if rate > 0)
        again = {name: numbers for name, numbers in found.items() if numbers["updates per step"] >= 1.9 * least}
        found = again or found
        yield Finding(
            "NS109",
            "statistics move more than once per step",
            "warning" if again else "info",
            tuple(found),
            found,
            "These layers count more batches than the optimizer took steps. Where only some layers do, their forward is recomputed in the "
            "backward, by activation checkpointing, and moves the statistics again: momentum is larger than it says. Where all "
            "do, the gradients of several micro-batches may be accumulated, and the statistics are those of one.",
            'ns.convert(model, "batch")  # knows a recomputed forward; accumulate=k merges the statistics of k micro-batches',
            ("pytorch#96136", "pytorch#46516"),
        )

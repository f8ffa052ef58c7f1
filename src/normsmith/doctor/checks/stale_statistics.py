"""NS108: statistics that are older than the weights, and the reason is known.

Takes a layer over from NS102, on the same evidence and with the same thresholds, where one of these says why: the optimizer given has taken
more steps than the layer has counted batches (in a tenth of the steps or more the statistics stood still), or the model is an
`AveragedModel` of `torch.optim.swa_utils`, whose weights are an average and whose statistics are those of one of the models. A layer that
was recalibrated counts few batches too, but has no gap.
"""

from collections.abc import Iterator

from torch.optim.swa_utils import AveragedModel

from normsmith.doctor.checks._far import ERROR, too_far
from normsmith.doctor.checks.updated_twice import optimizer_steps
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Layer, Observation


def reason(layer: Layer, seen: Observation) -> dict[str, float]:
    """What says that the weights are newer; empty if nothing does."""
    if isinstance(seen.model, AveragedModel) and int(seen.model.n_averaged) > 1:
        return {"models in the average": float(seen.model.n_averaged)}
    steps, tracked = optimizer_steps(seen), getattr(layer.module, "num_batches_tracked", None)
    if layer.learns_statistics and steps and tracked is not None and int(tracked.max()) < 0.9 * steps:
        return {"steps": float(steps), "batches in the statistics": float(tracked.max())}
    return {}


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.tracked():
        why, far = reason(layer, seen), too_far(layer)
        if why and far is not None:
            found[layer.name] = {"gap": far.size, "by chance": far.chance, **why}
    if found:
        yield Finding(
            "NS108",
            "the weights are newer than the statistics",
            "error" if max(numbers["gap"] for numbers in found.values()) > ERROR else "warning",
            tuple(sorted(found, key=lambda name: -found[name]["gap"])),
            found,
            "The weights moved while the running statistics of these layers did not, as with averaged weights, or layers that were in "
            "eval() during training: the statistics are those of another model, and evaluation differs from training by the gap.",
            "ns.recalibrate(model, train_loader)",
            ("composer#624", "Lightning#8811", "timm#106"),
        )

"""NS103: NaN or infinity in statistics, in parameters, or in what a layer reads. Always an error."""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for buffers and parameters, one for inputs."""
    state, inputs = {}, {}
    for layer in seen.layers:
        tensors = (*layer.module.named_parameters(), *layer.module.named_buffers())
        bad = {
            name: float((~t.isfinite()).sum()) for name, t in tensors if t.is_floating_point() and not bool(t.isfinite().all())
        }
        if bad:
            state[layer.name] = bad
        elif layer.nonfinite:
            inputs[layer.name] = {"calls": float(layer.nonfinite), "of": float(layer.calls)}
    if state:
        yield Finding(
            "NS103",
            "statistics or parameters are not finite",
            "error",
            tuple(state),
            state,
            "One batch with an overflow poisons an average for good: GradScaler skips the step of the optimizer, not the update of the "
            "statistics. From here on the layer gives NaN in evaluation.",
            'layer.reset_running_stats(); ns.recalibrate(model, loader)  # and train with nonfinite="skip"',
            ("pytorch#88474", "pytorch#115500"),
        )
    if inputs and not state:
        yield Finding(
            "NS103",
            "a layer reads values that are not finite",
            "error",
            tuple(inputs),
            inputs,
            "NaN or infinity reaches these layers in the data given; the first of them is where to look.",
            "ns.convert(model, \"batch:nonfinite='skip'\")  # keeps it out of the statistics, but look for its origin",
            ("pytorch#88474",),
        )

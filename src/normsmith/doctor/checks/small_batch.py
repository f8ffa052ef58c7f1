"""NS201: batch statistics that are noise.

The noise is how far the means of the batches given scatter, in deviations of the data, root mean square over channels; samples are seldom
independent, so it is measured and not taken from their number. It falls with the root of the batch size. A warning above 0.25, the scatter
of sixteen independent values; Wu and He (2018) see accuracy fall from batches of 8 on, where it is about 0.2 to 0.4 in late layers.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Layer, Observation

NOISE, ENOUGH = 0.25, 4


def noise(layer: Layer) -> float:
    """The scatter of batch means, in deviations."""
    assert layer.moments is not None
    var = layer.moments.var.flatten()
    alive = var > 1e-12 * var.max()
    return float((layer.scatter()[alive] / var[alive]).mean().sqrt()) if bool(alive.any()) else 0.0


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    if seen.batches < ENOUGH:
        seen.missing.append(f"the noise of batch statistics: needs {ENOUGH} batches, got {seen.batches}")
        return
    found = {}
    for layer in seen.tracked():
        size = sum(layer.samples) / max(len(layer.samples), 1)
        if layer.by_batch and noise(layer) > NOISE:
            found[layer.name] = {
                "noise": noise(layer),
                "at batch size": size,
                "0.1 from batch size": size * (noise(layer) / 0.1) ** 2,
            }
    if found:
        yield Finding(
            "NS201",
            "batches are too small for batch statistics",
            "warning",
            tuple(sorted(found, key=lambda name: -found[name]["noise"])),
            found,
            "In training these layers normalize by the batch, and the means of the batches given scatter by so many deviations: much of "
            "what the layer subtracts and divides by is noise, which the running statistics average out: evaluation is another network.",
            'ns.convert(model, "group", optimizer=optimizer, verify=batch)  # or ns.synchronize(model), or accumulate larger batches',
            ("arXiv 1803.08494", "nnUNet#2444"),
        )

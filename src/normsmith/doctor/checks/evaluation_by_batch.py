"""NS204: evaluation by the statistics of the batch.

Batch norm without running statistics (`track_running_stats=False`) makes the output for a sample depend on its batch mates. A warning if
the means of the batches given scatter by more than a tenth of a deviation, which is by how much it does.
"""

from collections.abc import Iterator

from normsmith.doctor.checks.small_batch import noise
from normsmith.doctor.finding import Finding
from normsmith.doctor.mixing import by_batch_in_evaluation
from normsmith.doctor.observation import Observation

SCATTER = 0.1


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.layers:
        if not layer.reached or seen.batches < 2 or not by_batch_in_evaluation(layer):
            continue
        if noise(layer) > SCATTER:
            found[layer.name] = {"scatter of batch means": noise(layer), "output moved by one sample": layer.by_mates}
    if found:
        yield Finding(
            "NS204",
            "evaluation depends on the batch",
            "warning",
            tuple(found),
            found,
            "These layers keep no running statistics, so that they normalize by the batch in evaluation too: what is computed for a sample "
            "depends on the samples beside it, and a batch of one is another network.",
            'ns.convert(model, {name: "batch:track_running_stats=True"}); ns.recalibrate(model, loader)',
            ("torchaudio#4205",),
        )

"""NS208: in evaluation, the output for a sample depends on the samples beside it, or on padding behind it.

Measured with two samples of the first batch (`mixing.py`): once with another sample beside the first, once with itself; and, where a batch
has an `attention_mask`, once with sequences padded by a quarter more. A warning where a normalizer reads the same and its output moves
by over a hundredth; rounding stays under 1e-4. Layers known to normalize by the batch in evaluation are NS204.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.mixing import by_batch_in_evaluation
from normsmith.doctor.observation import Observation

MOVED = 0.01


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    measured = {layer.name: (layer.by_mates, layer.by_padding) for layer in seen.layers if not by_batch_in_evaluation(layer)}
    found = {}
    for name, (mates, padding) in (measured | seen.mixing).items():
        numbers = {"by other samples": mates, "by padding": padding}
        if max(mates, padding) > MOVED:
            found[name] = {key: value for key, value in numbers.items() if value > MOVED}
    if found:
        yield Finding(
            "NS208",
            "a sample's output depends on its batch",
            "warning",
            tuple(found),
            found,
            "These layers read the same values for a sample in both batches, and give others, by so much of their size: statistics are "
            "taken over other samples, or over padding. What the model says of a sample then depends on what it is batched with.",
            "ns.BatchNorm(features)(x, mask=mask)  # every normalizer of ours leaves out what mask= or lengths= say",
            ("torchaudio#4205", "pytorch#81985"),
        )

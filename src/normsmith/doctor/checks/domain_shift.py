"""NS110: data that are not quite those of the statistics. For information.

A domain shift and stale statistics are the same to a layer: its running statistics are not those of the data. Where that changes the output
enough it is NS102 (or NS108), with the numbers of `shift.py` in its evidence, and this finding leaves those layers out. It names
layers with a smaller gap that is worth adapting to: over 0.1, a third of where the warning begins, more than three times what the scatter
of batches explains, and more than halved by adapting.
"""

from collections.abc import Iterator

from normsmith.doctor.checks._far import too_far
from normsmith.doctor.checks._gap import gap
from normsmith.doctor.checks.never_updated import is_new
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

SMALL = 0.1


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.tracked():
        moved = layer.shift
        if moved is None or is_new(layer) or too_far(layer) is not None:
            continue
        if moved.gap > max(SMALL, 3 * gap(layer).chance) and moved.adapted < moved.gap / 2:
            found[layer.name] = {
                "gap": moved.gap,
                "if adapted": moved.adapted,
                "KL divergence": moved.divergence,
                "Wasserstein distance": moved.wasserstein,
            }
    if found:
        yield Finding(
            "NS110",
            "data from a slightly different domain",
            "info",
            tuple(sorted(found, key=lambda name: -found[name]["gap"])),
            found,
            "The statistics of these layers are close to those of the data given, but not the same. If the data are what the model is for, "
            "adapting would lower the gap to the second number.",
            'ns.adapt(model, loader, method="adabn")  # .reset() takes it back',
            ("tent#3", "cotta#17"),
        )

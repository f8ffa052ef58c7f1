"""NS102: running statistics that are not those of the data.

The gap (`_gap.py`) is 0 where evaluation does what training does, and 1 where the difference is as large as the output. A warning from
0.3, an error from 1, and only if it is three times what the scatter of the batches explains.
A net whose learning rate has fallen stays below (none of 100 in benchmarks/known_answers.py); in the middle of training, at a high one,
statistics do lag behind the weights, and the warning is true. Layers whose reason is known are NS108.
"""

from collections.abc import Iterator

from normsmith.doctor.checks._far import ERROR, too_far
from normsmith.doctor.checks.stale_statistics import reason
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for layer in seen.tracked():
        size = too_far(layer)
        if size is not None and not reason(layer, seen):
            worst = int(size.channels.argmax())
            found[layer.name] = {
                "gap": size.size,
                "by chance": size.chance,
                "worst channel": worst,
                "there": float(size.channels[worst]),
            }
            if layer.shift is not None:
                found[layer.name] |= {"Wasserstein distance": layer.shift.wasserstein, "if adapted": layer.shift.adapted}
    if found:
        most = max(numbers["gap"] for numbers in found.values())
        yield Finding(
            "NS102",
            "evaluation differs from training",
            "error" if most > ERROR else "warning",
            tuple(sorted(found, key=lambda name: -found[name]["gap"])),
            found,
            "The running statistics of these layers are not those of the data given: in evaluation their output differs from that "
            "of training by so much of its own size. Either the statistics are stale (too few updates, averaged weights, a momentum "
            "that is too small or inverted), or these data are from another domain than the training set.",
            'ns.recalibrate(model, loader)  # of another domain: ns.adapt(model, loader, method="adabn")',
            ("pytorch#5406", "fvcore#97", "timm#106"),
        )

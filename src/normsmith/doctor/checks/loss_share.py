"""NS401: a layer that makes the loss of evaluation what it is. Needs `depth="full"`.

Found where the loss by running statistics exceeds that by the batch's own by more than a tenth, and by more than 0.02 (of cross entropy:
one part in fifty of the probability of the label), and the lower end of its 95 % interval over at least 3 batches is above zero. Named are
layers that make half of that, alone or from the other end (`full/swaps.py`), or else the one that makes most. A warning; for information
if NS102 or NS203 warns of these layers already.
"""

from collections.abc import Iterator

from normsmith.doctor.checks import shared_layer, train_eval_gap
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

PART, LEAST, MOST = 0.1, 0.02, 0.5


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    swaps = seen.closer.swaps if seen.closer else None
    if swaps is None or not swaps.alone:
        return
    gap, batch = swaps.gap, swaps.batch.mean().item()
    if gap.low <= 0 or gap.mean <= max(PART * abs(batch), LEAST):
        return
    shares = {name: max(swaps.share(name) or 0.0, swaps.share_back(name) or 0.0) for name in swaps.alone}
    worst = max(shares, key=lambda name: shares[name])
    names = sorted({name for name in shares if shares[name] >= MOST} | {worst}, key=lambda name: -shares[name])
    known = {name for other in (train_eval_gap, shared_layer) for finding in other.check(seen) for name in finding.layers}
    evidence = {
        name: {
            "share alone": swaps.share(name) or 0.0,
            "share back": swaps.share_back(name) or 0.0,
            "loss": swaps.running.mean().item(),
            "by the batch": batch,
            "gap from": gap.low,
            "to": gap.high,
        }
        for name in names
    }
    yield Finding(
        "NS401",
        "a layer makes the loss of evaluation",
        "info" if known.issuperset(names) else "warning",
        tuple(names),
        evidence,
        "Evaluation has a higher loss than the same data normalized by their own batches. Share alone is the part of the difference that "
        "goes if this layer alone takes the statistics of the batch; share back the part that comes if it alone keeps its running ones. "
        "Where the first is high and the second low, other layers depend on what is wrong here.",
        "ns.recalibrate(model, loader)  # and look at NS102 for where the statistics come from",
        ("pytorch#5406",),
    )

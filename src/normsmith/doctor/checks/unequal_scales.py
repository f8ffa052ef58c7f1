"""NS403: a layer that reads inputs of very unequal scales. For information; needs `depth="full"`.

Found where the second moments of what a linear or convolutional layer reads have a condition 100 times that of the same inputs brought to
one scale each: plain gradient descent needs so many times more steps along the small ones. K-FAC's block of the Fisher information is
G ⊗ A, so its condition falls by as much.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

TIMES = 100.0


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    found = {}
    for condition in seen.closer.conditions.values() if seen.closer else ():
        if condition.scales > TIMES:
            found[condition.layer] = {"condition by scales": condition.scales, "of the Fisher block": condition.block}
    if found:
        yield Finding(
            "NS403",
            "a layer reads inputs of unequal scales",
            "info",
            tuple(sorted(found, key=lambda name: -found[name]["condition by scales"])),
            found,
            "The inputs of these layers differ so much in size that the Fisher information of their weights is ill-conditioned by it: a "
            "learning rate that is right for the large inputs is too small for the small ones. A normalizer before the layer makes "
            "them equal.",
            'ns.make("batch", channels)  # before the layer; or scale the data',
            ("arXiv 1503.05671",),
        )

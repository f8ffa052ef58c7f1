"""NS402: gradients that grow or shrink from layer to layer. Needs `depth="full"`.

Compared is the gradient at the standardized values of the normalizers, which are all of one size. A warning where it differs by more than
a factor of 1000 between two of them. Batch norm makes gradients grow by sqrt(pi / (pi - 1)), 1.21, per layer in a net of ReLUs without
shortcuts at its initialization, whatever the scale of the weights (Yang et al. 2019): 1000 is reached after 36 layers.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

FACTOR = 1e3


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for the layers at both ends."""
    slopes = {n: s for n, s in seen.closer.slopes.items() if s.standardized > 0} if seen.closer else {}
    if len(slopes) < 2:
        return
    most, least = (pick(slopes, key=lambda name: slopes[name].standardized) for pick in (max, min))
    factor = slopes[most].standardized / slopes[least].standardized
    if factor <= FACTOR:
        return
    grows = slopes[most].order < slopes[least].order
    names = sorted((most, least), key=lambda name: slopes[name].order)
    yield Finding(
        "NS402",
        "gradients explode" if grows else "gradients vanish",
        "warning",
        tuple(names),
        {name: {"gradient": slopes[name].standardized, "ratio": slopes[name].ratio or 0.0, "apart": factor} for name in names},
        "On the way back through the network the gradient "
        + ("grows" if grows else "shrinks")
        + " by that factor between these "
        "layers, measured where every normalizer has brought its values to one size: with one learning rate either the first layers are "
        "shaken or the last ones do not learn. Batch norm without shortcuts around it does that by itself, a little at each layer.",
        'ns.convert(model, "layer", optimizer=optimizer)  # no growth by the batch; or shortcuts around every few layers',
        ("arXiv 1902.08129",),
    )

"""NS402: gradients that grow or shrink from layer to layer. Needs `depth="full"`.

Compared is the gradient at the standardized values of the normalizers, which are all of one size. A warning where a straight line through
its logarithm, over the order of at least 8 normalizers, changes by more than a factor of 1000, and fits with a correlation of 0.9: single
layers that are switched off, such as the last of a residual branch, make no line. Batch norm makes gradients grow by sqrt(pi / (pi - 1)),
1.21, per layer in a net of ReLUs without shortcuts at its initialization, whatever the scale of the weights (Yang et al. 2019): 1000 is
reached after 36 layers.
"""

from collections.abc import Iterator

import torch

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

FACTOR, CORRELATION, FEWEST = 1e3, 0.9, 8


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for the first and the last layer."""
    slopes = {n: s for n, s in seen.closer.slopes.items() if s.standardized > 0} if seen.closer else {}
    if len(slopes) < FEWEST:
        return
    names = sorted(slopes, key=lambda name: slopes[name].order)
    sizes = torch.tensor([slopes[name].standardized for name in names], dtype=torch.float64).log10()
    order = torch.arange(len(names), dtype=torch.float64)
    correlation = float(torch.corrcoef(torch.stack([order, sizes]))[0, 1])
    factor = 10 ** float(abs(correlation) * sizes.std() / order.std() * (len(names) - 1))
    if factor <= FACTOR or not abs(correlation) > CORRELATION:
        return
    grows = correlation < 0
    ends = (names[0], names[-1])
    yield Finding(
        "NS402",
        "gradients explode" if grows else "gradients vanish",
        "warning",
        ends,
        {name: {"gradient": slopes[name].standardized, "factor": factor, "correlation": correlation} for name in ends},
        "On the way back through the network the gradient "
        + ("grows" if grows else "shrinks")
        + " by that factor from the last "
        "of these layers to the first, evenly over those between, measured where every normalizer has brought its values to one size: with "
        "one learning rate either the first layers are shaken or the last ones do not learn. Batch norm without shortcuts around it makes "
        "gradients grow, a little at each layer.",
        'ns.convert(model, "layer", optimizer=optimizer)  # no growth by the batch; or shortcuts around every few layers',
        ("arXiv 1902.08129",),
    )

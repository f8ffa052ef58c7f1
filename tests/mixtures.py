"""What the tests of the operations of mixtures share: a density, and all that a backend finds by it."""

import torch
from helpers import assert_same

from normsmith.kernels.mixtures import Density, Draw


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_density(number, channels, joint):
    prior = torch.log_softmax(random(number, 1, seed=1), 0)
    return Density.of(prior, random(number, channels, seed=2), random(number, channels, seed=3).square() + 0.3, joint=joint)


def every_result(backend, x, dy, density, masked):
    """What all operations find, by name."""
    of = density.mean.shape
    center, scale, offset, slope, mean, var = (random(*of, seed=seed).to(x.device, density.mean.dtype) for seed in range(4, 10))
    by, moments = backend.shares(x, density, masked=masked) if density.joint else (density, None)
    if density.joint:
        assert_same(by, backend.shares(x, density, measures=False, masked=masked)[0], "the same without moments")
    moments = moments or backend.weighted_moments(x, by, masked=masked)
    sums = backend.weighted_grad_sums(dy, x, by, center, masked=masked)
    draw = Draw(center, offset, slope, mean, var)
    found = {"count": moments.count, "mean": moments.mean, "var": moments.var, "total": sums.total, "product": sums.product}
    found["y"] = backend.weighted_affine(x, by, center, scale, offset[:1])
    for through in (False, True):
        dx, logits = backend.weighted_grad_input(dy, x, by, scale, draw, through=through, masked=masked)
        found[f"dx {through}"] = dx
        assert (logits is None) == (not through or density.joint)
        found |= {f"logits {i}": t for i, t in enumerate(logits or ())}
    return found

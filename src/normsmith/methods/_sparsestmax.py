"""SparsestMax: the point of the simplex nearest to some logits, at a distance of at least `radius` from its centre.

sparsestmax(z, r) = argmin |p - z|² over p >= 0, sum p = 1, |p - 1/K| >= r. With r = 0 it is sparsemax; as r grows, more of the K
numbers are zero; from r = sqrt((K - 1) / K) on one is 1. On the way there the problem becomes one of a smaller simplex: the face that the
projection lands on has a centre u' of its own, and a point of it at distance r' from u' is at distance sqrt(r'² + |u - u'|²) from u.

Differs from the authors' code: that starts from the centre of the support of sparsemax with the whole radius, which is not the arg-min
wherever sparsemax has a zero already (one random case in seven), and it normalizes rounding noise where logits are equal.
Reference: Shao et al., "SSN: Learning Sparse Switchable Normalization via SparsestMax", CVPR 2019.
"""

import torch
from torch import Tensor

from normsmith.errors import InputError, OptionError

NO_PREFERENCE = 1e-6  # nearer than this to the centre there is no direction to go in


def sparsestmax(logits: Tensor, radius: float | Tensor) -> Tensor:
    """The nearest point of the simplex to `logits` (..., K), along the last dimension, `radius` or more from the centre.

    Equal largest logits leave no direction: they share what there is, whatever the radius. Computed in float64; the gradient takes
    radius and supports as constants.
    """
    if not logits.is_floating_point() or logits.dim() < 1 or logits.shape[-1] < 1:
        raise InputError(
            f"sparsestmax expects floating-point logits (..., K), K at least 1: got {logits.dtype} of shape {tuple(logits.shape)}"
        )
    if not isinstance(radius, Tensor) and not radius >= 0:
        raise OptionError(f"sparsestmax expects a radius of at least 0, from where it is sparsemax: got {radius!r}")
    size = logits.shape[-1]
    p = _sparsemax(logits.double())
    center = torch.full_like(p, 1 / size)
    limit = torch.as_tensor(radius, dtype=p.dtype, device=p.device).detach().square().expand(p.shape[:-1]).unsqueeze(-1)
    arrived = torch.zeros_like(limit, dtype=torch.bool)
    for _ in range(size - 1):  # every round leaves a smaller support, or arrives
        away = p - center
        square = away.square().sum(-1, keepdim=True)
        arrived = arrived | (square >= limit) | (square < NO_PREFERENCE**2) | (_support(p) == 1)
        # Where it is not needed the square may be 0, and the derivative of its root infinite.
        out = center + away * limit.sqrt() * torch.where(arrived, 1, square).rsqrt()
        inside = (out >= 0).all(-1, keepdim=True)
        p = torch.where(arrived, p, torch.where(inside, out, _sparsemax(out)))
        arrived = arrived | inside
        nearer = (p > 0).to(p.dtype) / _support(p)
        limit = (limit - (center - nearer).square().sum(-1, keepdim=True)).clamp_min(0)
        center = nearer
    return p.to(logits.dtype)


def _support(p: Tensor) -> Tensor:
    return (p > 0).sum(-1, keepdim=True)


def _sparsemax(z: Tensor) -> Tensor:
    """The nearest point of the simplex: what is above a threshold tau, less tau."""
    ordered = z.sort(-1, descending=True).values
    sums = ordered.cumsum(-1) - 1
    ranks = torch.arange(1, z.shape[-1] + 1, device=z.device)
    support = (ordered * ranks > sums).sum(-1, keepdim=True).clamp_min(1)
    return torch.relu(z - sums.gather(-1, support - 1) / support)

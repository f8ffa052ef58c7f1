"""Several batches as one: their union, and their moves of a running average."""

import torch
from torch import Tensor

from normsmith.moments import Moments


def union(state: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, take: Tensor | None, final: bool) -> Tensor:
    """Mean, variance, count and number of some batches, stacked, with one more, where `take` is true; `final` as in `update`."""
    new = torch.as_tensor(count, dtype=mean.dtype, device=mean.device)
    if take is not None:
        mean, var, new = (torch.where(take, t, 0) for t in (mean, var, new))
    old_mean, old_var, old, batches = state.unbind(0)
    total = old + new
    share = new / total.clamp_min(torch.finfo(total.dtype).tiny)  # weighted moments may count less than one
    step = mean - old_mean
    between = 0 if final else share * (1 - share) * step.square()
    spread = old_var + share * (var - old_var) + between
    return torch.stack([old_mean + share * step, spread, total.expand_as(mean), batches + 1])


def as_one(rows: Moments, momentum: float | None) -> Moments:
    """Moves of a running average, a row each, in order, as a single one; `count` is how many moves a row stands for already."""
    counts = rows.counts()
    if momentum is None:
        weights = counts
    else:
        later = counts.flip(0).cumsum(0).flip(0) - counts
        weights = (1 - (1 - momentum) ** counts) * (1 - momentum) ** later
    shares = weights / weights.sum(0, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    mean, var = (torch.where(counts > 0, shares * t, 0).sum(0, keepdim=True) for t in (rows.mean, rows.var))
    return Moments(mean, var, counts.sum(0, keepdim=True))

"""Several batches as one: their union, and their moves of a running average."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from normsmith.covariance import in_rows, outer
from normsmith.kernels.choose import backend_for
from normsmith.moments import Moments
from normsmith.surroundings import must_stay_plain


def pairs(layer: nn.Module, mean: Tensor, var: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The running mean and variance of a layer, ours or torch's, each with something of the same kind."""
    found = zip((layer._buffers["running_mean"], layer._buffers["running_var"]), (mean, var), strict=True)
    return [(running, new) for running, new in found if running is not None]


def moved_at_once(buffers: Mapping[str, Tensor | None], batch: Moments, momentum: float | None, *, final: bool) -> bool:
    """Move running mean and variance without more ado, if it can be: all else costs as much as a kernel over a small batch.

    By each row in order, if `batch` has several.
    """
    mean, var, tracked = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
    if mean is None or var is None or tracked is None or momentum is None or not isinstance(batch.count, int):
        return False
    found, spread = batch.mean, batch.var
    if must_stay_plain((mean, found)) or (final and not found.dtype == spread.dtype == mean.dtype):
        return False
    tracked.add_(found.numel() // max(mean.numel(), 1))
    factors = (1.0, 1.0 if final else batch.count / max(batch.count - 1, 1))
    backend_for(found).move_average((mean, var), (found, spread), factors, momentum)
    return True


State = tuple[Tensor, Tensor, Tensor, Tensor]


def apart(state: Tensor) -> State:
    """Mean, spread, count and number of some batches, which are rows 0 to 3; the spread is the variance, and behind it rows 4 and on."""
    mean, var, count, batches = state[:4].unbind(0)
    return mean, var if len(state) == 4 else torch.cat([var.unsqueeze(0), state[4:]]), count, batches


def union(state: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, take: Tensor | None, final: bool) -> Tensor:
    """Some batches with one more, where `take` is true; `final` as in `update`."""
    new = torch.as_tensor(count, dtype=mean.dtype, device=mean.device)
    if take is not None:
        mean, var, new = (torch.where(take, t, 0) for t in (mean, var, new))
    old_mean, old_var, old, batches = apart(state)
    total = old + new
    share = new / total.clamp_min(torch.finfo(total.dtype).tiny)  # weighted moments may count less than one
    step = mean - old_mean
    between = 0 if final else share * (1 - share) * _products(step, var)
    spread = old_var + share * (var - old_var) + between
    plain = var.dim() == mean.dim()
    merged = torch.stack([old_mean + share * step, spread if plain else spread[0], total.expand_as(mean), batches + 1])
    return merged if plain else torch.cat([merged, spread[1:]])


def _products(step: Tensor, spread: Tensor) -> Tensor:
    """What a step of the means adds to variances, and to covariances within groups of as many channels as there are rows of them."""
    if spread.dim() == step.dim():
        return step.square()
    return torch.cat([step.square().unsqueeze(0), in_rows(outer(step.view(-1, len(spread) - 1)))])


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

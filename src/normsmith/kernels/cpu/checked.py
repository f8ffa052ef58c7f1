"""torch's group norm of tensors whose channels are last in memory, and whether it may be believed.

It is fast there, but takes a variance as E[x²] - E[x]², from long sums in single precision. What that costs one over the deviation,
relatively, was at most 4.5e-8 * sqrt(additions) * (1 + (mean / deviation)²) over normal and uniform data; at a mean of 1000 deviations
nothing is left. It hands out mean and one over the deviation of every group, so that one knows afterwards, in less than a microsecond.
Data of a few distinct values are rounded alike each time: of those up to 2e-4 was lost.
"""

import math

import torch
from torch import Tensor

from normsmith.kernels.choose import LONG
from normsmith.kernels.cpu.launch import ZEROS
from normsmith.kernels.cpu.memory import sequential, view

BELIEVED = 200.0  # sqrt(additions) * (1 + (mean / deviation)²): one over the deviation is then right to 1e-5
LANES = 8  # channels of a group that are summed apart, where its loops follow groups


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor | None:
    """For (N, C, *spatial) with channels last, without gaps; differentiable. None where it is not to be believed."""
    samples, channels = x.shape[0], x.shape[1]
    positions = x.numel() // (samples * channels)
    additions = positions if positions >= LONG else positions * max(1, channels // groups // LANES)
    limit = BELIEVED / math.sqrt(additions) - 1
    if limit <= 0:
        return None
    maps = x if x.dim() == 4 else x.flatten(2).unsqueeze(2)  # of other dimensions it would make a copy in rows
    y, mean, inverse = torch.native_group_norm(maps, weight, bias, samples, channels, positions, groups, eps)
    if mean.dtype in ZEROS:
        near = _are_near(ZEROS[mean.dtype], mean.data_ptr(), inverse.data_ptr(), mean.numel(), limit)
    else:
        near = bool(((mean.detach() * inverse.detach()).square() < limit).all())
    if not near:
        return None
    return y if x.dim() == 4 else y.view(x.shape)


@sequential
def _are_near(zero, means, inverses, count, limit):  # type: ignore[no-untyped-def]
    """Whether every mean, in deviations and squared, is below the limit; one that is not a number is not."""
    near = True
    for i in range(count):
        away = view(means, zero, i, 1)[0] * view(inverses, zero, i, 1)[0]
        near &= away * away < limit
    return near

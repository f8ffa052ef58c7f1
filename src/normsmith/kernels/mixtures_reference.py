"""The operations of mixtures in plain torch: for every device, as the oracle of the other backends, and differentiable as they stand."""

import torch
from torch import Tensor

from normsmith.kernels import Sums
from normsmith.kernels.mixtures import By, Density, Draw, fraction
from normsmith.kernels.reference import widened
from normsmith.moments import Moments


def _wide(t: Tensor) -> Tensor:
    """(K, C) beside (N, K, C, S)."""
    return t.unsqueeze(0).unsqueeze(3)


def _counted(x: Tensor, masked: bool) -> tuple[Tensor, Tensor | None]:
    """The elements, zero where they do not count, and which do."""
    wide = widened(x)
    if not masked:
        return wide, None
    keep = ~wide.isnan()
    return torch.where(keep, wide, 0), keep


def _logits(x: Tensor, density: Density, masked: bool) -> Tensor:
    wide, keep = _counted(x, masked)
    squares = _wide(density.precision) * (wide.unsqueeze(1) - _wide(density.mean)).square()
    if density.joint:
        squares = (squares if keep is None else torch.where(keep.unsqueeze(1), squares, 0)).sum(2, keepdim=True)
    return _wide(density.constant) - 0.5 * squares


def shares(x: Tensor, density: Density, *, measures: bool = True, masked: bool = False) -> tuple[Tensor, Moments | None]:
    found = torch.softmax(_logits(x, density, masked), 1).squeeze(2).transpose(0, 1)
    return found, weighted_moments(x, found, masked=masked) if measures else None


def evidence(x: Tensor, density: Density, *, masked: bool = False) -> Tensor:
    """The log of the density up to a constant, (N, C, S), or (N, 1, S) of a joint one."""
    return torch.logsumexp(_logits(x, density, masked), 1)


def weights(x: Tensor, by: By, *, masked: bool = False) -> Tensor:
    """The shares (N, K, C, S), or (N, K, 1, S), zero where an element does not count; here operations take them for `by`, too."""
    if not isinstance(by, Tensor):
        found = torch.softmax(_logits(x, by, masked), 1)
    else:
        found = by if by.dim() == 4 else by.transpose(0, 1).unsqueeze(2)
    return torch.where(x.isnan().unsqueeze(1), 0, found) if masked else found


def weighted_moments(x: Tensor, by: By, *, masked: bool = False) -> Moments:
    held = weights(x, by, masked=masked)
    wide, keep = _counted(x, masked)
    # Deviations from a constant near the mean: sums of x itself would lose what the mean is more than the deviation.
    elements = x.shape[0] * x.shape[2] if keep is None else keep.sum((0, 2)).clamp_min(1)
    pivot = (wide.sum((0, 2)) / elements).detach().view(1, 1, -1, 1)
    count = held.expand(-1, -1, x.shape[1], -1).sum((0, 3))
    total = fraction(count)
    moved = wide.unsqueeze(1) - pivot
    rest = (held * moved).sum((0, 3)) / total
    var = (held * (moved - _wide(rest)).square()).sum((0, 3)) / total
    return Moments(pivot.view(1, -1) + rest, var, count)


def weighted_affine(x: Tensor, by: By, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    held, wide, y = weights(x, by), widened(x), bias.unsqueeze(2)
    for k in range(scale.shape[0]):  # one by one, x first: so the memory format is that of x
        y = (wide - center[k].unsqueeze(1)) * scale[k].unsqueeze(1) * held[:, k] + y
    return y.to(x.dtype)


def weighted_grad_sums(dy: Tensor, x: Tensor, by: By, center: Tensor, *, masked: bool = False) -> Sums:
    wide, _ = _counted(x, masked)
    grads = weights(x, by, masked=masked) * widened(dy).unsqueeze(1)
    return Sums(grads.sum((0, 3)).expand_as(center), (grads * (wide.unsqueeze(1) - _wide(center))).sum((0, 3)))


def weighted_grad_input(
    dy: Tensor, x: Tensor, by: By, scale: Tensor, draw: Draw, *, through: bool, masked: bool = False
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    wide, _ = _counted(x, masked)
    held = weights(x, by, masked=masked)
    direct = widened(dy).unsqueeze(1) * _wide(scale)
    away = wide.unsqueeze(1) - _wide(draw.mean)
    dx = (held * (direct + _wide(draw.offset) + 2 * _wide(draw.slope) * away)).sum(1)
    if not through or isinstance(by, Tensor):
        return dx.to(x.dtype), None
    worth = direct * (wide.unsqueeze(1) - _wide(draw.center))
    worth = worth + _wide(draw.offset) * away + _wide(draw.slope) * (away.square() - _wide(draw.var))
    logits = held * (worth - (held * worth).sum(1, keepdim=True))
    far = wide.unsqueeze(1) - _wide(by.mean)
    dx = dx - (logits * _wide(by.precision) * far).sum(1)
    first, second = (logits * far).sum((0, 3)), (logits * far.square()).sum((0, 3))
    return dx.to(x.dtype), (logits.sum((0, 3)), by.precision * first, -0.5 * second)

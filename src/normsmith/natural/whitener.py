"""The matrix that whitens: from a covariance, damped, truncated, in the basis that is asked for."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from normsmith.errors import InputError

Basis = Literal["pca", "zca"]


class Whitener(NamedTuple):
    """U (groups, rank, channels) with U C Uᵀ = L / (L + eps), what undoes it, and the eigenvalues L, largest first."""

    matrix: Tensor
    inverse: Tensor  # (groups, channels, rank)
    eigenvalues: Tensor
    damped: Tensor  # eigenvalues with what was added to them


def whitener(
    covariance: Tensor, eps: float, *, basis: Basis = "pca", rank: int | None = None, clip: float | None = None
) -> Whitener:
    """U = (L + eps)^(-1/2) Dᵀ of covariances (groups, channels, channels) = D L Dᵀ, the first `rank` rows of it; "zca": D U.

    `eps` counts in mean eigenvalues of a group. `clip` bounds the condition number of U, by raising small eigenvalues. A group without any
    variance is not scaled.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(-1).clamp_min(0), vectors.flip(-1)
    mean = values.mean(-1, keepdim=True)
    damped = torch.where(mean > 0, values + eps * mean, 1)
    if clip is not None:
        damped = torch.maximum(damped, damped[:, :1] / clip**2)
    least = damped[:, :1] * values.shape[-1] * torch.finfo(values.dtype).eps
    if bool((damped <= least).any()):
        raise InputError(
            f"whitening without damping expects a covariance of full rank: got {int((damped > least).sum(-1).min())} of "
            f"{values.shape[-1]} eigenvalues above rounding; raise eps, or give more data"
        )
    kept = slice(None, rank)
    rotation = vectors.mT[:, kept]
    scale = damped[:, kept].sqrt().unsqueeze(-1)
    matrix, inverse = rotation / scale, (rotation * scale).mT
    if basis == "zca":
        matrix, inverse = rotation.mT @ matrix, inverse @ rotation
    return Whitener(matrix, inverse, values, damped)


def rank_for(eigenvalues: Tensor, energy: float) -> int:
    """How many of the largest eigenvalues hold a share `energy` of their sum, in every group: all for 1, at least one."""
    if energy >= 1:
        return eigenvalues.shape[-1]
    shares = eigenvalues.cumsum(-1) / eigenvalues.sum(-1, keepdim=True).clamp_min(torch.finfo(eigenvalues.dtype).tiny)
    return min(int((shares < energy).sum(-1).max()) + 1, eigenvalues.shape[-1])


def aligned(matrix: Tensor, covariance: Tensor, old: Tensor) -> Tensor:
    """Q `matrix`, with the rotation Q that brings what it gives nearest, in mean square, to what `old` gives."""
    left, _, right = torch.linalg.svd(old @ covariance @ matrix.mT)
    turned: Tensor = left @ right @ matrix
    return turned

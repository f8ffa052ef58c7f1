"""Derivatives of what is done with statistics, written by hand: autograd of small tensors costs more than a kernel over a small batch.

Backends may have them in fewer operations; these are the ones of plain torch.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Known(Protocol):
    """Moments, as far as they matter here."""

    @property
    def mean(self) -> Tensor:
        """The mean of each cell."""

    @property
    def var(self) -> Tensor:
        """The biased variance of each cell."""


# The gradients of the weights of the means, of the weights of the variances, and of the mean and variance of every source of a blend.
Weighed = tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]


def weigh(d_mean: Tensor, d_var: Tensor, sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor) -> Weighed:
    """The derivative of `combined.blend`."""
    own = [(m, fit(d_mean, m.mean), fit(d_var, m.var)) for m in sources]
    d_mean_weights = torch.stack([torch.dot(one.reshape(-1), m.mean.reshape(-1)) for m, one, _ in own])
    d_var_weights = torch.stack([torch.dot(one.reshape(-1), m.var.reshape(-1)) for m, _, one in own])
    shares = zip(own, mean_weights.unbind(), var_weights.unbind(), strict=True)
    return d_mean_weights, d_var_weights, [(one * p, other * q) for (_, one, other), p, q in shares]


def unscale(total: Tensor, product: Tensor, scale: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of standardizing, from the sums of dy and of dy * (x - mean): of the weight, the mean and the variance.

    `inverse` is one over the deviation, and `scale` that times the weight.
    """
    d_weight = product * inverse
    return d_weight, (scale * total).neg_(), (scale * inverse).mul_(d_weight).mul_(-0.5)


def fit(grad: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of a tensor that was broadcast, in its own shape and type."""
    if grad.shape != tensor.shape:
        grad = grad.view_as(tensor) if grad.numel() == tensor.numel() else grad.sum_to_size(tensor.shape)
    return grad if grad.dtype == tensor.dtype else grad.to(tensor.dtype)

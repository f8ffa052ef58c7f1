"""What is done with statistics alone, a few numbers for each cell, where every step costs more than its work.

These are the steps in plain torch, differentiable as they stand. A backend may have them in fewer: moments carry the arithmetic of the
backend that took them (`Moments.by`), and hand it on to what is made of them.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from normsmith.derivatives import Known, Weighed, fit, unscale, weigh

__all__ = ["Arithmetic", "AtOnce", "Dims", "Line", "Pair", "Pulled", "Unstandardized", "lines", "pool", "share", "standardize"]
__all__ += ["unstandardize", "weigh", "weighted_sum"]

Dims = int | tuple[int, ...]
Pair = tuple[Tensor, Tensor]
Line = tuple[Tensor, Tensor, Tensor]  # slope, pivot, offset: slope * (x - pivot) + offset
Bending = tuple[str, Tensor]  # an activation: `kernels.Bend`
Pulled = tuple[
    Tensor, Tensor, Tensor, int | Tensor
]  # of a mean and a variance the gradients; the mean, and how many elements have it


class Unstandardized(NamedTuple):
    """The gradients through standardizing, each in the shape of what it belongs to."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Towards(NamedTuple):
    """Moments that standardized data are drawn to.

    z becomes z * ratio + drift, as if it were standardized by these moments, with the ratio (of deviations) at most `ratio` and at
    least one over it, and the drift, in deviations, at most `drift` either way. Both are constants for the gradient.
    """

    mean: Tensor
    var: Tensor
    ratio: float
    drift: float


class AtOnce(Protocol):
    """Data standardized by a backend that needs no moments for it, or finds them on the way."""

    y: Tensor

    def backward(self, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, *tuple[Pair, ...]]:
        """The gradients of x, weight and bias, and other tensors that the moments were made of, each with its gradient."""


class Arithmetic(Protocol):
    """A module with these operations."""

    def pool(self, mean: Tensor, var: Tensor, dims: Dims, *, spread: bool = False) -> Pair:
        """Mean and variance of the union of cells of one size along some dimensions; kept with size 1, or spread over them again."""

    def share(self, d_mean: Tensor, d_var: Tensor, dim: int) -> Pair:
        """Of two gradients the sums along a dimension, spread over it again."""

    def weighted_sum(self, sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor) -> Pair:
        """Weighted sums of means and of variances, which broadcast."""

    def weigh(
        self, d_mean: Tensor, d_var: Tensor, sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor
    ) -> Weighed:
        """The derivative of `weighted_sum`, as in `derivatives.weigh`."""

    def standardize(self, moments: Known, weight: Tensor | None, eps: float, *, centered: bool) -> Pair:
        """One over the deviation, or over the root of the mean square if not centered; and that times the weight."""

    def unstandardize(
        self,
        total: Tensor,
        product: Tensor,
        factors: Pair,
        moments: Known,
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        centered: bool,
    ) -> Unstandardized:
        """The derivative of standardizing and of weight and bias behind it, from the sums of dy and of dy * (x - center)."""

    def lines(self, pulled: Sequence[Pulled]) -> Line:
        """The gradients through moments of x, which are lines in x, as one."""


def pool(mean: Tensor, var: Tensor, dims: Dims, *, spread: bool = False) -> Pair:
    """Mean and variance of the union along some dimensions, of cells of one size; kept with size 1, or spread over them again."""
    middle = mean.mean(dims, keepdim=True)
    away = mean - middle
    found = middle, torch.addcmul(var, away, away).mean(dims, keepdim=True)
    return (found[0].expand_as(mean), found[1].expand_as(mean)) if spread else found


def share(d_mean: Tensor, d_var: Tensor, dim: int) -> Pair:
    """Of two gradients the sums along a dimension, spread over it again."""
    return d_mean.sum(dim, keepdim=True).expand_as(d_mean), d_var.sum(dim, keepdim=True).expand_as(d_var)


def weighted_sum(sources: Sequence[Known], mean_weights: Tensor, var_weights: Tensor) -> Pair:
    """Weighted sums of means and of variances, which broadcast."""
    terms = list(zip(sources, mean_weights.unbind(), var_weights.unbind(), strict=True))
    # Backwards, as callers name the cells first: what samples or channels share is small.
    first, p, q = terms[-1]
    mean, var = first.mean * p, first.var * q
    for m, p, q in reversed(terms[:-1]):
        mean, var = torch.addcmul(mean, m.mean, p), torch.addcmul(var, m.var, q)
    return mean, var


def standardize(moments: Known, weight: Tensor | None, eps: float, *, centered: bool) -> Pair:
    """One over the deviation, or over the root of the mean square if not centered; and that times the weight."""
    power = moments.var if centered else moments.var + moments.mean.square()
    inverse = (power + eps).rsqrt()
    return inverse, inverse if weight is None else inverse * weight


def unstandardize(
    total: Tensor,
    product: Tensor,
    factors: Pair,
    moments: Known,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    centered: bool,
) -> Unstandardized:
    """The derivative of standardizing and of weight and bias behind it, from the sums of dy and of dy * (x - center).

    `factors` are what `standardize` found, the second in the shape of the sums.
    """
    inverse, scale = factors
    d_weight, d_mean, d_var = unscale(total, product, scale, inverse)
    d_var = fit(d_var, moments.var)
    return Unstandardized(
        fit(d_mean, moments.mean) if centered else 2 * moments.mean * d_var,
        d_var,
        None if weight is None else fit(d_weight, weight),
        None if bias is None else fit(total, bias),
    )


def lines(pulled: Sequence[Pulled]) -> Line:
    """The gradient through moments of x is a line in x over what they are of: several added up, around the pivot of the first."""
    slope, pivot, offset = _line(*pulled[0])
    for one in pulled[1:]:
        other_slope, other_pivot, other_offset = _line(*one)
        offset = torch.addcmul(offset + other_offset, other_slope, pivot - other_pivot)
        slope = slope + other_slope
    return slope, pivot, offset


def _line(d_mean: Tensor, d_var: Tensor, mean: Tensor, count: int | Tensor) -> Line:
    count = count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)
    return d_var * (2 / count), mean.detach(), d_mean / count

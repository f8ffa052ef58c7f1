"""The Jacobian of batch norm: what it does to a gradient that passes back through it.

Formula, for one channel of M elements with s = sqrt(var + eps) and xhat = (x - mean) / s:
J = (weight / s) (I - 1 1ᵀ / M - xhat xhatᵀ / M), symmetric, exact for any eps. Its eigenvalues are 0 along 1, weight / s ·
eps / (var + eps) along xhat, and weight / s, M - 2 times: so no gradient is made longer than by |weight| / s, and what is constant in
it is lost.
tr J = (weight / s) (M - 1 - var / (var + eps)). With M = 1 all of it is zero: the output is constant.

Elements of a channel are ordered by sample, then by position, as in `x.transpose(0, 1).reshape(C, -1)`: M = N · positions.
Reference: Luo, "Understanding Normalization", lecture; there without eps. Santurkar, Tsipras, Ilyas and Madry, "How Does Batch
Normalization Help Optimization?", NeurIPS 2018, theorem 4.1.
"""

import math

import torch
from torch import Tensor

from normsmith.errors import InputError, OptionError
from normsmith.measure import measure

LARGEST = 4096  # elements per channel: a matrix of 128 MiB in float64


def bn_jacobian(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """The Jacobian d y / d x of batch norm in training, a matrix for each channel.

    `x` is (N, C, *spatial), or (M,) for a single channel; `weight` (C,), ones if None. Returns (C, M, M), or (M, M) for a single channel,
    with M at most 4096. The bias does not enter.
    """
    standard, gain, _ = _standardized("bn_jacobian", x, weight, eps)
    size = standard.shape[1]
    if size > LARGEST:
        raise InputError(
            f"bn_jacobian expects at most {LARGEST} elements per channel: got {size}; use bn_vjp, which needs no matrix, or a part of x"
        )
    projection = torch.eye(size, dtype=x.dtype, device=x.device) - 1 / size
    found = gain.view(-1, 1, 1) * (projection - standard.unsqueeze(2) * standard.unsqueeze(1) / size)
    return found[0] if x.dim() == 1 else found


def bn_jacobian_trace(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """The trace of each channel's Jacobian, (C,), or () for a single channel, by its formula; arguments as in `bn_jacobian`."""
    standard, gain, share = _standardized("bn_jacobian_trace", x, weight, eps)
    found = gain * (standard.shape[1] - 1 - share)
    return found[0] if x.dim() == 1 else found


def bn_vjp(x: Tensor, grad_output: Tensor, weight: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """J grad_output, the gradient at the input of batch norm in training for one at its output, both of the shape of `x`.

    (weight / s) (g - mean g - xhat mean (g xhat)): two means per channel and no matrix; other arguments as in `bn_jacobian`.
    """
    if grad_output.shape != x.shape:
        raise InputError(
            f"bn_vjp expects grad_output of the shape of x, {tuple(x.shape)}: got {tuple(grad_output.shape)}; pass that of y"
        )
    standard, gain, _ = _standardized("bn_vjp", x, weight, eps)
    g = _channels(grad_output.detach()).to(standard.dtype)
    g = g - g.mean(1, keepdim=True)
    g = gain.unsqueeze(1) * (g - standard * (g * standard).mean(1, keepdim=True))
    return g[0] if x.dim() == 1 else g.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def _standardized(verb: str, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """xhat as (C, M), the gain weight / s, and var / (var + eps), both (C,)."""
    if not math.isfinite(eps) or eps < 0:
        raise OptionError(f"{verb} expects eps as a number from 0: got {eps!r}")
    if not x.is_floating_point() or x.numel() == 0:
        raise InputError(f"{verb} expects floating x with elements: got {x.dtype} of shape {tuple(x.shape)}")
    view = _channels(x.detach())
    if weight is not None and weight.shape != (view.shape[0],) and not (x.dim() == 1 and weight.numel() == 1):
        raise InputError(
            f"{verb} expects weight of shape ({view.shape[0]},): got {tuple(weight.shape)}; one number per channel"
        )
    with torch.no_grad():
        _, batch = measure(view.transpose(0, 1), sees="batch")
        assert batch is not None
        mean, var = batch.mean.view(-1), batch.var.view(-1)
        whole = var + eps
        if not bool((whole > 0).all()):
            raise InputError(f"{verb} expects channels that vary where eps is 0: got a constant one; pass eps=1e-5")
        standard = (view.to(mean.dtype) - mean.unsqueeze(1)) * whole.rsqrt().unsqueeze(1)
        gain = whole.rsqrt() if weight is None else weight.detach().reshape(-1).to(mean.dtype) * whole.rsqrt()
        return standard, gain, var / whole


def _channels(x: Tensor) -> Tensor:
    """(C, M)."""
    return x.unsqueeze(0) if x.dim() == 1 else x.transpose(0, 1).reshape(x.shape[1], -1)

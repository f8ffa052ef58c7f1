"""Predicting the statistics behind a convolution or linear layer from those before it: two ways that use its weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from normsmith.errors import OptionError
from normsmith.methods._chain import Join, State

SAMPLES = 256


def check_between(between: nn.Module | None, inputs: int, outputs: int, predictor: str) -> None:
    """Raise unless `between` is a layer whose weights can be used, of these sizes."""
    weighted = isinstance(between, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if between is None or not weighted:
        raise OptionError(
            f"predictor={predictor!r} expects one convolution or linear layer between two Kalman layers: got {between!r}; pass it as "
            'between=, or take predictor="matrix"'
        )
    own = _kernels(between)
    if own.shape[0] != outputs or own.shape[1] != inputs:
        raise OptionError(
            f"predictor={predictor!r} expects a layer from {inputs} to {outputs} channels between: got one from {own.shape[1]} to "
            f"{own.shape[0]}"
        )


def sampled(mean: Tensor, var: Tensor, between: nn.Module) -> tuple[Tensor, Tensor]:
    """The moments of relu(N(mean, var)), drawn for every place of the kernel, behind the weights; as the authors' code."""
    kernels = _kernels(between).to(mean)
    noise = torch.randn((SAMPLES, *kernels.shape[1:]), dtype=mean.dtype, device=mean.device)
    drawn = torch.relu(mean.view(1, -1, 1) + var.clamp_min(0).sqrt().view(1, -1, 1) * noise)
    seen = drawn.flatten(1) @ kernels.flatten(1).T + _bias(between, mean)
    return seen.mean(0, keepdim=True), seen.var(0, correction=0, keepdim=True)


def analytic(states: Sequence[State], join: Join, between: nn.Module) -> tuple[Tensor, Tensor]:
    """The moments of the ReLU of the normalized signals, N(bias, weight²), behind the weights, as if places were independent."""
    size = max(state.mean.shape[-1] for state in states)
    means, variances = zip(*(_rectified(state) for state in states), strict=True)
    if join == "cat":
        mean, var = torch.cat(means), torch.cat(variances)
    else:
        mean, var = (torch.stack([pad(t, (0, size - t.numel())) for t in every]).sum(0) for every in (means, variances))
    kernels = _kernels(between).to(mean)
    behind = kernels.sum(2) @ mean + _bias(between, mean)
    return behind.unsqueeze(0), (kernels.square().sum(2) @ var).unsqueeze(0)


def _rectified(state: State) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(0, N(bias, weight²)) of every channel."""
    like = state.mean.reshape(-1)
    bias = torch.zeros_like(like) if state.bias is None else state.bias.to(like)
    spread = torch.ones_like(like) if state.weight is None else state.weight.to(like).abs()
    spread = spread.clamp_min(torch.finfo(like.dtype).tiny ** 0.5)
    level = bias / spread
    below = torch.special.ndtr(level)
    density = (-level.square() / 2).exp() / math.sqrt(2 * math.pi)
    mean = bias * below + spread * density
    square = (bias.square() + spread.square()) * below + bias * spread * density
    return mean, (square - mean.square()).clamp_min(0)


def _kernels(between: nn.Module) -> Tensor:
    """The weights as (outputs, inputs, places), zero where groups do not connect."""
    weight = between.weight
    assert isinstance(weight, Tensor)
    flat = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    groups = getattr(between, "groups", 1)
    if groups == 1:
        return flat
    blocks = flat.view(groups, -1, *flat.shape[1:])
    apart = torch.eye(groups, dtype=flat.dtype, device=flat.device).view(groups, 1, groups, 1, 1)
    return (blocks.unsqueeze(2) * apart).flatten(2, 3).flatten(0, 1)


def _bias(between: nn.Module, like: Tensor) -> Tensor:
    bias = getattr(between, "bias", None)
    return bias.to(like) if isinstance(bias, Tensor) else like.new_zeros(())

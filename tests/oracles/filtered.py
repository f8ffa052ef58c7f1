"""Batch norm by the mean and variance of the elements with |x - m0| / sqrt(v0 + eps) < threshold, applied to all elements."""

import math

import torch

VARIANTS = [
    {"threshold": 1.5},
    {"threshold": 0.7, "momentum": None},
    {"threshold": 1.2, "gaussian_correction": True, "affine": False},
    {"threshold": 1.5, "unbiased": "first", "eps": 1e-3},
    {"threshold": 1.5, "unbiased": "both", "track_running_stats": False},
]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    threshold,
    gaussian_correction,
    unbiased,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    buffers = {}
    if training or not track_running_stats:
        with torch.no_grad():
            m = x.numel() // x.shape[1]
            mean = x.sum(dims, keepdim=True) / m
            var = ((x - mean) ** 2).sum(dims, keepdim=True) / (m if unbiased == "none" else m - 1)
            keep = ((x - mean).abs() / torch.sqrt(var + eps) < threshold).to(x.dtype)
            keep = torch.where(keep.sum(dims, keepdim=True) == 0, 1.0, keep)
        k = keep.sum(dims)
        mean = (keep * x).sum(dims) / k
        squares = (keep * (x - mean.view(per_channel)) ** 2).sum(dims)
        if gaussian_correction:
            normal = torch.distributions.Normal(0.0, 1.0)
            t = torch.tensor(threshold, dtype=torch.float64)
            density = torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
            squares = squares / (1 - 2 * t * density / (2 * normal.cdf(t) - 1))
        var = squares / ((k - 1).clamp_min(1) if unbiased == "both" else k)
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * squares / (k - 1).clamp_min(1),
                "num_batches_tracked": count,
            }
    else:
        mean, var = running_mean, running_var
    y = (x - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    if affine:
        y = y * weight.view(per_channel) + bias.view(per_channel)
    return y, buffers

"""Batch norm of chunks of consecutive samples; every chunk moves the running statistics."""

import torch

VARIANTS = [
    {"batch_size": 2},
    {"batch_size": 2, "momentum": None},
    {"batch_size": 1, "momentum": 0.3, "affine": False},
    {"batch_size": 3, "track_running_stats": False, "eps": 1e-3},
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
    batch_size,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    buffers = {}
    if training or not track_running_stats:
        pieces = []
        for chunk in x.split(batch_size):
            m = chunk.numel() // x.shape[1]
            mean = chunk.sum(dims) / m
            var = ((chunk - mean.view(per_channel)) ** 2).sum(dims) / m
            pieces.append((chunk - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps))
            if training and track_running_stats:
                num_batches_tracked = num_batches_tracked + 1
                step = momentum if momentum is not None else 1 / num_batches_tracked.item()
                running_mean = (1 - step) * running_mean + step * mean
                running_var = (1 - step) * running_var + step * var * m / (m - 1)
        y = torch.cat(pieces)
        if training and track_running_stats:
            buffers = {"running_mean": running_mean, "running_var": running_var, "num_batches_tracked": num_batches_tracked}
    else:
        y = (x - running_mean.view(per_channel)) / torch.sqrt(running_var.view(per_channel) + eps)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

"""y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, in training too; thawed, batch norm."""

import torch

VARIANTS = [{"affine": False}, {"eps": 1e-3}, {"frozen": False, "momentum": None}]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    eps,
    momentum,
    affine,
    track_running_stats,
    frozen=True,
):
    assert track_running_stats
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    mean, var, buffers = running_mean, running_var, {}
    if training and not frozen:
        assert momentum is None
        dims = [d for d in range(x.dim()) if d != 1]
        m = x.numel() // x.shape[1]
        mean = x.sum(dims) / m
        var = ((x - mean.view(per_channel)) ** 2).sum(dims) / m
        count = num_batches_tracked + 1
        buffers = {
            "running_mean": running_mean + (mean - running_mean) / count,
            "running_var": running_var + (var * m / (m - 1) - running_var) / count,
            "num_batches_tracked": count,
        }
    y = (x - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

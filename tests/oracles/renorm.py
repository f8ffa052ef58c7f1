"""y = ((x - mean) / s * r + d) * weight + bias, r and d detached and clipped."""

import torch

VARIANTS = [{"r_max": 1.0, "d_max": 0.0}, {"r_max": 1.2, "d_max": 0.3, "eps": 1e-3}, {"momentum": None}, {"affine": False}]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    running_mean,
    running_var,
    num_batches_tracked,
    r_max,
    d_max,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    assert track_running_stats
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    s_run = torch.sqrt(running_var + eps)
    if not training:
        y, buffers = (x - running_mean.view(per_channel)) / s_run.view(per_channel), {}
    else:
        m = x.numel() // x.shape[1]
        mean = x.sum(dims) / m
        var = ((x - mean.view(per_channel)) ** 2).sum(dims) / m
        s = torch.sqrt(var + eps)
        r = (s / s_run).clamp(1 / r_max, r_max).detach()
        d = ((mean - running_mean) / s_run).clamp(-d_max, d_max).detach()
        y = (x - mean.view(per_channel)) / s.view(per_channel) * r.view(per_channel) + d.view(per_channel)
        count = num_batches_tracked + 1
        step = momentum if momentum is not None else 1 / count.item()
        buffers = {
            "running_mean": (1 - step) * running_mean + step * mean,
            "running_var": (1 - step) * running_var + step * var * m / (m - 1),
            "num_batches_tracked": count,
        }
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

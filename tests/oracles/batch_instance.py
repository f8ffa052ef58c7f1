"""y = (rho * batch_norm(x) + (1 - rho) * instance_norm(x)) * weight + bias; the clamp of rho lets the gradient pass."""

import torch

VARIANTS = [
    {"initial": 0.25},
    {"initial": 0.0, "momentum": None},
    {"initial": 0.3, "track_running_stats": False, "eps": 1e-3},
    {"initial": 0.4, "affine": False},
]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    rho,
    running_mean,
    running_var,
    num_batches_tracked,
    initial,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    cells = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    positions = cells.shape[2]
    mean = cells.sum(2, keepdim=True) / positions
    var = ((cells - mean) ** 2).sum(2, keepdim=True) / positions
    instance = ((cells - mean) / torch.sqrt(var + eps)).view(x.shape)
    mean, var, buffers = running_mean, running_var, {}
    if training or not track_running_stats:
        m = x.shape[0] * positions
        mean = cells.sum([0, 2]) / m
        var = ((cells - mean.view(1, -1, 1)) ** 2).sum([0, 2]) / m
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * var * m / (m - 1),
                "num_batches_tracked": count,
            }
    batch = (x - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    share = (rho + (rho.clamp(0, 1) - rho).detach()).view(per_channel)
    y = share * batch + (1 - share) * instance
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

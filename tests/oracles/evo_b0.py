"""y = x / max(sqrt(var of the channel + eps), v x + sqrt(var of the cell + eps)) * weight + bias."""

import torch

VARIANTS = [{"affine": False}, {"momentum": 0.3, "eps": 1e-3}, {"momentum": None}, {"track_running_stats": False}]


def forward(
    x, training, *, weight, bias, v, running_mean, running_var, num_batches_tracked, eps, momentum, affine, track_running_stats
):
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    m = x.numel() // x.shape[1]
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    cell_mean = flat.sum(2, keepdim=True) / flat.shape[2]
    cell_var = ((flat - cell_mean) ** 2).sum(2) / flat.shape[2]
    buffers = {}
    if training or not track_running_stats:
        mean = flat.sum((0, 2)) / m
        var = ((flat - mean.view(-1, 1)) ** 2).sum((0, 2)) / m
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * var * m / (m - 1),
                "num_batches_tracked": count,
            }
    else:
        var = running_var
    of_sample = torch.sqrt(cell_var + eps).view(*x.shape[:2], *[1] * (x.dim() - 2))
    y = x / torch.maximum(torch.sqrt(var + eps).view(per_channel), v.view(per_channel) * x + of_sample)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

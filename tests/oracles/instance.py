"""y = (x - mean) / sqrt(var + eps) * weight + bias over (*spatial) of each sample and channel."""

import torch

VARIANTS = [{"affine": True}, {"affine": True, "track_running_stats": True}, {"track_running_stats": True, "momentum": None}]


def forward(
    x, training, *, weight, bias, running_mean, running_var, num_batches_tracked, eps, momentum, affine, track_running_stats
):
    dims = list(range(2, x.dim()))
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    positions = x[0, 0].numel()
    buffers = {}
    if training or not track_running_stats:
        mean = x.sum(dims, keepdim=True) / positions
        var = ((x - mean) ** 2).sum(dims, keepdim=True) / positions
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            unbiased = var * positions / (positions - 1)
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean.mean(0).flatten(),
                "running_var": (1 - step) * running_var + step * unbiased.mean(0).flatten(),
                "num_batches_tracked": count,
            }
    else:
        mean, var = running_mean.view(per_channel), running_var.view(per_channel)
    y = (x - mean) / torch.sqrt(var + eps)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

"""Instance norm of the first int(C * ratio) channels, batch norm of the rest, one weight and one bias."""

import torch

VARIANTS = [
    {"ratio": 0.3},
    {"ratio": 0.8, "momentum": None},
    {"ratio": 0.0},
    {"ratio": 1.0},
    {"track_running_stats": False, "eps": 1e-3},
    {"affine": False},
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
    ratio,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    half = int(x.shape[1] * ratio)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    first, rest = x[:, :half], x[:, half:]
    spatial = list(range(2, x.dim()))
    positions = x[0, 0].numel()
    one_more = first.unsqueeze(-1)  # a sum over no dimension would be one over all
    mean = one_more.sum([*spatial, x.dim()], keepdim=True).squeeze(-1) / positions
    var = ((first - mean) ** 2).unsqueeze(-1).sum([*spatial, x.dim()], keepdim=True).squeeze(-1) / positions
    first = (first - mean) / torch.sqrt(var + eps)
    buffers = {}
    if training or not track_running_stats:
        dims = [0, *spatial]
        m = x.shape[0] * positions
        mean = rest.sum(dims) / m
        var = ((rest - mean.view(per_channel)) ** 2).sum(dims) / m
        if training and track_running_stats and half < x.shape[1]:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * var * m / (m - 1),
                "num_batches_tracked": count,
            }
    else:
        mean, var = running_mean, running_var
    rest = (rest - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    y = torch.cat([first, rest], 1)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), buffers

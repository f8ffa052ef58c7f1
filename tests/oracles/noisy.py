"""y = s * batch_norm(x) + m, drawn in float32 in the order mu, sigma, m, s; no noise in evaluation."""

import torch

VARIANTS = [
    {"per": "cell"},
    {"per": "cell", "affine": False, "mean_jitter": 0.0},
    {"mean_range": 2.0, "std_range": 3.0, "std_jitter": 0.5, "momentum": None},
    {"track_running_stats": False, "eps": 1e-3, "std_range": 1.0},
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
    mean_range,
    std_range,
    mean_jitter,
    std_jitter,
    per,
    eps,
    momentum,
    affine,
    track_running_stats,
):
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    buffers = {}
    mean, var = running_mean, running_var
    if training or not track_running_stats:
        m = x.numel() // x.shape[1]
        mean = x.sum(dims) / m
        var = ((x - mean.view(per_channel)) ** 2).sum(dims) / m
        if training and track_running_stats:
            count = num_batches_tracked + 1
            step = momentum if momentum is not None else 1 / count.item()
            buffers = {
                "running_mean": (1 - step) * running_mean + step * mean,
                "running_var": (1 - step) * running_var + step * var * m / (m - 1),
                "num_batches_tracked": count,
            }
    y = (x - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    if affine:
        y = y * weight.view(per_channel) + bias.view(per_channel)
    if training:
        c, shape = x.shape[1], x.shape if per == "element" else [*x.shape[:2], *[1] * (x.dim() - 2)]
        mu = (-mean_range + 2 * mean_range * torch.rand(c).to(x.dtype)).view(per_channel)
        sigma = (1 + (std_range - 1) * torch.rand(c).to(x.dtype)).view(per_channel)
        shift = mu - mean_jitter + 2 * mean_jitter * torch.rand(shape).to(x.dtype)
        spread = sigma + std_jitter * torch.randn(shape).to(x.dtype)
        y = spread * y + shift
    return y, buffers

"""y = sum_k g_nk (x - mean_k) / sqrt(var_k + eps) * weight + bias, g = softmax of a linear map of the sample's channel means."""

import torch

VARIANTS = [
    {"components": 2, "momentum": None},
    {"components": 4, "affine": False, "eps": 1e-3},
    {"track_running_stats": False},
]


def forward(
    x,
    training,
    *,
    weight,
    bias,
    gate_weight,
    gate_bias,
    running_mean,
    running_var,
    num_batches_tracked,
    components,
    eps,
    momentum,
    track_running_stats,
    **rest,
):
    flat = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    gates = torch.softmax(flat.mean(2) @ gate_weight.T + gate_bias, 1)
    y, means, variances, counts = 0.0, [], [], []
    for k in range(components):
        g = gates[:, k].view(-1, 1, 1)
        count = g.sum() * flat.shape[2]
        mean = (g * flat).sum((0, 2)) / count
        var = (g * (flat - mean.view(1, -1, 1)) ** 2).sum((0, 2)) / count
        means, variances, counts = [*means, mean], [*variances, var], [*counts, count]
        if not training and track_running_stats:
            mean, var = running_mean[k], running_var[k]
        y = y + g * (flat - mean.view(1, -1, 1)) / torch.sqrt(var.view(1, -1, 1) + eps)
    if weight is not None:
        y = y * weight.view(1, -1, 1) + bias.view(1, -1, 1)
    buffers = {}
    if training and track_running_stats:
        count = torch.stack(counts).view(-1, 1)
        tracked = num_batches_tracked + 1
        step = momentum if momentum is not None else 1 / tracked[:, None].double()
        unbiased = torch.stack(variances) * (count / (count - 1).clamp_min(1)).clamp_min(1)
        buffers = {
            "running_mean": running_mean + step * (torch.stack(means) - running_mean),
            "running_var": running_var + step * (unbiased - running_var),
            "num_batches_tracked": tracked,
        }
    return y.view(x.shape), buffers

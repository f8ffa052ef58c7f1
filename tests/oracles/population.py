"""y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, the running statistics updated first and then constants."""

import torch

VARIANTS = [{"affine": False}, {"momentum": 0.3}, {"warmup": 2}, {"emulate": 8}, {"emulate": 4, "activation": "linear"}]


def forward(x, training, *, weight, bias, running_mean, running_var, num_batches_tracked, eps, momentum, warmup, **rest):
    dims = [d for d in range(x.dim()) if d != 1]
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    mean, var, buffers = running_mean, running_var, {}
    m = x.numel() // x.shape[1]
    if training:
        batch_mean = x.sum(dims) / m
        batch_var = ((x - batch_mean.view(per_channel)) ** 2).sum(dims) / m
        step = 1.0 if num_batches_tracked == 0 else momentum
        mean = (running_mean + step * (batch_mean - running_mean)).detach()
        var = (running_var + step * (batch_var * m / (m - 1) - running_var)).detach()
        buffers = {"running_mean": mean, "running_var": var, "num_batches_tracked": num_batches_tracked + 1}
        if num_batches_tracked + 1 <= warmup:
            mean, var = batch_mean, batch_var
    y = (x - mean.view(per_channel)) / torch.sqrt(var.view(per_channel) + eps)
    if weight is not None:
        y = y * weight.view(per_channel) + bias.view(per_channel)
    if training and rest["emulate"]:
        buffers["decay_statistics"] = decay_statistics(x, buffers, weight, bias, eps, rest["activation"])
    return y, buffers


def decay_statistics(x, buffers, weight, bias, eps, activation):
    flat = x.detach().transpose(0, 1).flatten(1)
    centered = flat - flat.mean(1, keepdim=True)
    kurtosis = (centered**4).mean(1) / (centered**2).mean(1) ** 2 - 3
    standard = (flat - buffers["running_mean"][:, None]) / torch.sqrt(buffers["running_var"] + eps)[:, None]
    y = standard * weight.detach()[:, None] + bias.detach()[:, None]
    slope = torch.sigmoid(y) if activation == "relu" else torch.ones_like(y)
    return torch.stack([kurtosis.clamp(-2, 30), slope.mean(1), (slope * standard**2).mean(1)])

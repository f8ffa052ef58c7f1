"""y = (x - mean) / sqrt(var + eps) * weight + bias over (C, *spatial) of each sample, affine per channel."""

import torch

VARIANTS = [{"affine": False}, {"bias": False}, {"eps": 1e-3}]


def forward(x, training, *, weight, bias, eps, affine):
    flat = x.reshape(x.shape[0], -1)
    mean = flat.sum(1, keepdim=True) / flat.shape[1]
    var = ((flat - mean) ** 2).sum(1, keepdim=True) / flat.shape[1]
    y = ((flat - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    if affine:
        y = y * weight.view(per_channel)
        y = y + bias.view(per_channel) if bias is not None else y
    return y, {}

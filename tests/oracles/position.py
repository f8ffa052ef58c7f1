"""y = (x - mean) / sqrt(var + eps) * weight + bias over the channels of each position; not centered, x / sqrt(mean(x²) + eps) * weight."""

import torch

VARIANTS = [{"centered": False}, {"affine": False, "eps": 1e-3}, {"centered": False, "affine": False}]


def forward(x, training, *, weight, bias, centered, eps, affine):
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    moved = x - x.sum(1, keepdim=True) / x.shape[1] if centered else x
    y = moved / torch.sqrt((moved**2).sum(1, keepdim=True) / x.shape[1] + eps)
    if affine:
        y = y * weight.view(per_channel)
    return (y + bias.view(per_channel) if affine and centered else y), {}

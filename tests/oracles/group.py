"""y = (x - mean) / sqrt(var + eps) * weight + bias over a group's channels and positions, affine per channel."""

import torch

VARIANTS = [{"num_groups": 2}, {"num_groups": 12}, {"num_groups": 1, "eps": 1e-3}, {"affine": False}]


def forward(x, training, *, weight, bias, num_groups, eps, affine):
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean = grouped.sum(2, keepdim=True) / grouped.shape[2]
    var = ((grouped - mean) ** 2).sum(2, keepdim=True) / grouped.shape[2]
    y = ((grouped - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), {}

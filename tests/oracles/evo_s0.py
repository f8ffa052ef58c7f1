"""y = x * sigmoid(v x) / sqrt(var + eps) * weight + bias, var over a group's channels and positions."""

import torch

VARIANTS = [{"num_groups": 2}, {"num_groups": 1, "eps": 1e-3}, {"num_groups": 12}, {"affine": False}]


def forward(x, training, *, weight, bias, v, num_groups, eps, affine):
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    grouped = x.reshape(x.shape[0], num_groups, -1)
    mean = grouped.sum(2, keepdim=True) / grouped.shape[2]
    var = ((grouped - mean) ** 2).sum(2, keepdim=True) / grouped.shape[2]
    swish = x / (1 + torch.exp(-v.view(per_channel) * x))
    y = (swish.reshape(grouped.shape) / torch.sqrt(var + eps)).reshape(x.shape)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), {}

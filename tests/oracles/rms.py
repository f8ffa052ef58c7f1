"""y = x / sqrt(mean(x²) + eps) * weight over (C, *spatial) of each sample, weight per channel."""

import torch

VARIANTS = [{"eps": 1e-6}, {"affine": False}]


def forward(x, training, *, weight, bias, eps, affine):
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    flat = x.reshape(x.shape[0], -1)
    y = (flat / torch.sqrt((flat**2).sum(1, keepdim=True) / flat.shape[1] + eps)).reshape(x.shape)
    return (y * weight.view([1, -1] + [1] * (x.dim() - 2)) if affine else y), {}

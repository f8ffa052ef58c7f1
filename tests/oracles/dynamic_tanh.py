"""y = tanh(alpha x) * weight + bias."""

import torch

VARIANTS = [{"affine": False}, {"init_alpha": 0.1}]


def forward(x, training, *, weight, bias, alpha, init_alpha, affine):
    y = torch.tanh(alpha * x)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), {}

"""Group norm by the mean and variance of the elements with |x - m0| / sqrt(v0 + eps) < threshold, applied to all elements."""

import torch

VARIANTS = [
    {"threshold": 1.5, "num_groups": 2},
    {"threshold": 1.5, "num_groups": 1, "filter_in_eval": False},
    {"threshold": 0.7, "num_groups": 4, "eps": 1e-3},
    {"threshold": 1.0, "num_groups": 3, "affine": False},
]


def forward(x, training, *, weight, bias, num_groups, threshold, filter_in_eval, eps, affine):
    grouped = x.reshape(x.shape[0], num_groups, -1)
    keep = torch.ones_like(grouped)
    if training or filter_in_eval:
        with torch.no_grad():
            mean = grouped.sum(2, keepdim=True) / grouped.shape[2]
            var = ((grouped - mean) ** 2).sum(2, keepdim=True) / grouped.shape[2]
            keep = ((grouped - mean).abs() / torch.sqrt(var + eps) < threshold).to(x.dtype)
            keep = torch.where(keep.sum(2, keepdim=True) == 0, 1.0, keep)
    k = keep.sum(2, keepdim=True)
    mean = (keep * grouped).sum(2, keepdim=True) / k
    var = (keep * (grouped - mean) ** 2).sum(2, keepdim=True) / k
    y = ((grouped - mean) / torch.sqrt(var + eps)).reshape(x.shape)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    return (y * weight.view(per_channel) + bias.view(per_channel) if affine else y), {}

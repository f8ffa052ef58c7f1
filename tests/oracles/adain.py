"""y = alpha * (std(style) * (x - mean(x)) / std(x) + mean(style)) + (1 - alpha) * x, std = sqrt(var + eps) over positions."""

import torch

VARIANTS = [{"alpha": 0.3}, {"alpha": 0.0}, {"unbiased": True}]


def _mean_and_std(x, eps, unbiased):
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    mean = flat.sum(2) / flat.shape[2]
    var = ((flat - mean[..., None]) ** 2).sum(2) / max(flat.shape[2] - int(unbiased), 1)
    shape = x.shape[:2] + (1,) * (x.dim() - 2)
    return mean.reshape(shape), torch.sqrt(var + eps).reshape(shape)


def forward(x, training, *, style, weight, bias, alpha, eps, unbiased):
    mean, std = _mean_and_std(x, eps, unbiased)
    style_mean, style_std = _mean_and_std(style, eps, unbiased)
    return alpha * (style_std * (x - mean) / std + style_mean) + (1 - alpha) * x, {}

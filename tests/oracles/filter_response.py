"""y = max(x / sqrt(mean(x²) + eps) * weight + bias, tau) over (*spatial) of each sample and channel."""

import torch

VARIANTS = [
    {"threshold": False},
    {"learn_eps": True},
    {"affine": False},
    {"affine": False, "threshold": False, "eps": 1e-3},
    {"learn_eps": True, "threshold": False, "affine": False},
]


def forward(x, training, *, weight, bias, tau, learned_eps, threshold, learn_eps, eps, affine):
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    added = eps + torch.abs(learned_eps) if learn_eps else eps
    y = flat / torch.sqrt((flat**2).sum(2, keepdim=True) / flat.shape[2] + added)
    if affine:
        y = y * weight.view(-1, 1) + bias.view(-1, 1)
    if threshold:
        y = torch.where(y > tau.view(-1, 1), y, tau.view(-1, 1))
    return y.reshape(x.shape), {}

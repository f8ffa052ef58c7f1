"""y = x / (k + alpha * mean of x² over `size` channels)^beta, channels that do not exist counting as zeros."""

import torch

VARIANTS = [{"size": 2, "alpha": 0.5}, {"size": 25, "alpha": 0.1, "beta": 0.5, "k": 2.0}, {"size": 1, "alpha": 1.0}]


def forward(x, training, *, weight, bias, size, alpha, beta, k):
    channels = []
    for c in range(x.shape[1]):
        window = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        channels.append(x[:, c] / (k + alpha * (window**2).sum(1) / size) ** beta)
    return torch.stack(channels, 1), {}

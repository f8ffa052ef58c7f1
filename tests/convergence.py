"""A short training, for comparing the losses of two backends."""

import torch
from torch import nn

import normsmith as ns


def trained(method: str, backend: str, device: str, steps: int = 40, size: int = 12) -> list[float]:
    """The losses of a small network that learns to tell random images apart."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), ns.make(method, 16), nn.ReLU(), nn.Conv2d(16, 32, 3), ns.make(method, 32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    ).to(device)  # fmt: skip
    x, labels = torch.randn(32, 3, size, size).to(device), torch.arange(32).remainder(4).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with ns.backend(backend):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

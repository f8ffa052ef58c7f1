"""What a norm costs inside a network: the step of a small conv net with the norm, minus the step without.

Alone, a kernel has the caches and the cores to itself; between convolutions it has neither, and a second pool of threads beside
torch's would show only here.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.bench.timing import interleave, interval
from normsmith.methods.catalog import make

DEPTH, CHANNELS, BATCH, SIZE = 4, 64, 64, 32


@dataclass(frozen=True)
class NetworkRow:
    """The cost of a method inside the net, as a multiple of torch's batch norm there, with a 95 % interval of the median."""

    method: str
    layout: str
    cost_ms: float
    to_batch: float
    low: float
    high: float


class _Net(nn.Module):
    """conv - norm - relu, four times."""

    def __init__(self, norm: Callable[[], nn.Module | None]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(DEPTH))
        self.norms = nn.ModuleList(layer for layer in (norm() for _ in range(DEPTH)) if layer is not None)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                norm: Any = self.norms[i]
                x = norm(x, **(norm.example_inputs(x) if hasattr(norm, "example_inputs") else {}))
            x = torch.relu(x)
        return x


def measure(methods: list[str], rounds: int, layout: str = "rows", device: str = "cpu") -> list[NetworkRow]:
    """Steps of the net with each method, with torch's batch norm and without a norm, interleaved."""
    memory_format = torch.channels_last if layout == "columns" else torch.contiguous_format
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE, device=device).contiguous(memory_format=memory_format)

    def step(norm: Callable[[], nn.Module | None]) -> Callable[[], object]:
        net = _Net(norm).to(device, memory_format=memory_format)  # type: ignore[call-overload]
        parameters = list(net.parameters())
        return lambda: torch.autograd.grad(net(x).sum(), parameters)

    runs = {name: step(lambda name=name: make(name, CHANNELS)) for name in methods}  # type: ignore[misc]
    runs |= {"torch": step(lambda: nn.BatchNorm2d(CHANNELS)), "none": step(lambda: None)}
    seconds = interleave(runs, rounds, device=device).seconds
    bare = statistics.median(seconds["none"])
    base = statistics.median(seconds["torch"]) - bare
    rows = []
    for name in methods:
        ratios = [(t - bare) / base for t in seconds[name]]
        low, high = interval(ratios)
        cost = statistics.median(seconds[name]) - bare
        rows.append(NetworkRow(name, layout, cost * 1e3, statistics.median(ratios), low, high))
    return rows

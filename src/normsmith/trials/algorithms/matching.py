"""The formulas of AdaMatch, on tensors alone: interpolated logits, aligned classes, the relative threshold, the rising weight."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LITTLE = 1e-6  # added to both averages of an alignment


def interpolated(together: Tensor, alone: Tensor, shares: Tensor) -> Tensor:
    """Logits of the source between those in a batch with the target and those in one without, each its own way."""
    return shares * together + (1 - shares) * alone


def aligned(probabilities: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Class probabilities of the target, brought towards how often the source has each class; rows sum to 1."""
    moved = probabilities * ((_LITTLE + source) / (_LITTLE + target))
    return moved / moved.sum(1, keepdim=True)


def rise(progress: float) -> float:
    """0 at the start, 1 from the middle on."""
    return 0.5 - 0.5 * math.cos(min(math.pi, 2 * math.pi * progress))


def source_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the weak and the strong samples, which follow one another, of their cross entropy."""
    return F.cross_entropy(logits, torch.cat([labels, labels]))


def target_loss(logits: Tensor, labels: Tensor, sure: Tensor) -> Tensor:
    """The cross entropy of those that are sure, as a mean over all: 0 where none is."""
    return (sure * F.cross_entropy(logits, labels, reduction="none")).mean()


class Alignment:
    """How often the network has each class: of the source an exponential average, of the target the mean over the last batches.

    Both begin with all classes alike, and hold the newest batch when they are used.
    """

    def __init__(self, classes: int, decay: float, batches: int, device: torch.device | None = None) -> None:
        self.decay = decay
        self.source = torch.full((classes,), 1 / classes, device=device)
        self.recent = torch.full((batches, classes), 1 / classes, device=device)
        self.seen = 0

    @property
    def target(self) -> Tensor:
        """The mean over the last batches of the target."""
        return self.recent.mean(0)

    def update(self, source: Tensor, target: Tensor) -> None:
        """Take the mean probabilities of a batch of each."""
        self.source.lerp_(source, 1 - self.decay)
        self.recent[self.seen % len(self.recent)] = target
        self.seen += 1

    def __call__(self, probabilities: Tensor) -> Tensor:
        """The target's probabilities, aligned."""
        return aligned(probabilities, self.source, self.target)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"source": self.source, "recent": self.recent, "seen": self.seen}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.source.copy_(state["source"])
        self.recent.copy_(state["recent"])
        self.seen = state["seen"]

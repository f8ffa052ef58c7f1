"""The loss with one layer's statistics swapped: what each layer has in the loss that evaluation adds to training.

With E the loss of evaluation and B the loss with all layers by the batch (dropout and the like in evaluation in both), E - B is the gap.
A layer's share is (E - E_l) / (E - B), with E_l that layer alone by the batch; and back from the other end (B_l - B) / (E - B), with B_l
that layer alone by its running statistics. Layers work together, so shares need not add up to one. Losses are compared batch by batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from normsmith.analysis._photograph import Randomness
from normsmith.analysis._still import Still, holding
from normsmith.doctor._students import students
from normsmith.doctor.full.clock import Clock
from normsmith.doctor.full.modes import by_batch
from normsmith.doctor.subject import Subject
from normsmith.surgery._console import follow

FEWEST = 3  # batches, for an interval


@dataclass(frozen=True)
class Difference:
    """A mean over batches, and its 95 % interval; infinite with fewer than 3 batches."""

    mean: float
    low: float
    high: float


def difference(one: Tensor, other: Tensor) -> Difference:
    """The mean of one - other, batch by batch."""
    apart = one - other
    mean, number = apart.mean().item(), len(apart)
    half = students(number) * apart.std().item() / math.sqrt(number) if number >= FEWEST else math.inf
    return Difference(mean, mean - half, mean + half)


@dataclass(eq=False)
class Swaps:
    """Losses of the same batches, float64; those of a layer by its name."""

    running: Tensor
    batch: Tensor
    alone: dict[str, Tensor] = field(default_factory=dict)  # this layer by the batch, the others by running statistics
    back: dict[str, Tensor] = field(default_factory=dict)  # this one by running statistics, the others by the batch

    @property
    def gap(self) -> Difference:
        """What evaluation adds to the loss."""
        return difference(self.running, self.batch)

    def gain(self, name: str) -> Difference:
        """By how much the loss of evaluation falls with this layer alone by the batch."""
        return difference(self.running, self.alone[name])

    def share(self, name: str) -> float | None:
        """Its part of the gap; None where there is no gap that stands out from chance, or it was not swapped."""
        return self._share(self.gain(name).mean) if name in self.alone else None

    def share_back(self, name: str) -> float | None:
        """Its part of the gap, from the other end."""
        return self._share(difference(self.back[name], self.batch).mean) if name in self.back else None

    def _share(self, part: float) -> float | None:
        gap = self.gap
        return part / gap.mean if gap.low > 0 or gap.high < 0 else None


def swap(subject: Subject, layers: Sequence[tuple[str, nn.Module]], batches: Sequence[Any], clock: Clock) -> Swaps | None:
    """Swap layer after layer, in the order given, while there is time; None if there is none even for the two ends."""
    rounds = 2 + 2 * len(layers)
    fits = len(batches) if math.isinf(clock.left) else int(clock.left / 2 / max(clock.forward * rounds, 1e-9))
    used = list(batches[: max(min(FEWEST, len(batches)), min(fits, len(batches)))])
    step = clock.forward * len(used)
    if not clock.has(2 * step, "the loss by layer swaps"):
        return None
    everyone = [module for _, module in layers]
    with holding(subject.model, "examine", evaluating=True) as still, torch.no_grad():
        found = Swaps(_losses(subject, still, used, []), _losses(subject, still, used, everyone))
        for index, (name, module) in enumerate(follow(layers, len(layers), "swapping statistics", Console(stderr=True))):
            if not clock.has(2 * step, f"the loss by swaps of {len(layers) - index} of {len(layers)} layers"):
                break
            found.alone[name] = _losses(subject, still, used, [module])
            found.back[name] = _losses(subject, still, used, [m for m in everyone if m is not module])
    return found


def _losses(subject: Subject, still: Still, batches: Sequence[Any], modules: Sequence[nn.Module]) -> Tensor:
    """The loss of each batch, drawn from the same random numbers, with these layers by the batch."""
    randomness = Randomness(subject.model)
    with by_batch(modules):
        found = [
            still.call(lambda batch=batch: subject.value(subject.model, subject.output(subject.model, batch), batch), {})  # type: ignore[misc]
            for batch in batches
        ]
    randomness.put_back()
    return torch.stack([loss.double().cpu() for loss in found])

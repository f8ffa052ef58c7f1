"""How a trial learns: a room for each algorithm, all behind `Algorithm`.

The loop, its schedules, checkpoints, evaluation and records are the same for all, and know none of them by name. To add one: its room, its
settings, a line in `_ROOMS`.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from normsmith import data
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE, Share

Sets = tuple[data.Dataset, ...]  # what an algorithm learns from; the model is built for the first
Batch = tuple[Tensor, ...]  # the first are the samples that have labels
Forward = Callable[[nn.Module, Tensor], Any]

_ROOMS = {"supervised": "Supervised", "adamatch": "AdaMatch"}


@dataclass(frozen=True, eq=False)
class Test:
    """What a model is judged on."""

    name: str  # in records: "" for what gives the accuracy, others end in a space
    batches: data.Batches
    forward: Forward  # what the model says of its samples


class Algorithm(Protocol):
    """What a way to learn has of its own."""

    gives_conditions: ClassVar[bool]  # whether conditional and context norms are told what they want to know
    sets: Sets
    tests: tuple[Test, ...]  # the first is what a trial is judged by
    steps: int  # batches of an epoch

    def __init__(self, trial: Trial, sets: Sets, share: Share = ALONE) -> None: ...

    @staticmethod
    def load(name: str, root: str | None) -> Sets:
        """The data of that name."""

    @staticmethod
    def fault(trial: Trial, sets: Sets) -> str:
        """Why a trial cannot learn from these data; nothing if it can."""

    @staticmethod
    def forward(model: nn.Module, x: Tensor) -> Any:
        """What the model says of samples that have labels: for a trial run, and to measure its memory."""

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """The batches of an epoch that begins when so many steps have been taken; they depend on the seed and on these two alone."""

    def gradients(self, model: nn.Module, batch: Batch, progress: float) -> Iterator[Tensor]:
        """Add the gradients of this rank's share of a batch; the loss, in as many parts as the batch is taken in.

        `progress` is the share of all steps that have been taken.
        """

    def values(self) -> dict[str, float]:
        """What it records of the epoch that has ended."""

    def state(self) -> dict[str, Any]:
        """What it needs to go on, beside model, optimizer and random numbers; tensors and plain data."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""


def kind_of(trial: Trial) -> type[Algorithm]:
    """The algorithm of a trial."""
    name = trial.algorithm_name
    kind: type[Algorithm] = getattr(importlib.import_module(f"normsmith.trials.algorithms.{name}"), _ROOMS[name])
    return kind


def begin(trial: Trial, root: str | None, share: Share) -> Algorithm:
    """The algorithm of a trial, with its data."""
    kind = kind_of(trial)
    return kind(trial, _sets(kind, trial.dataset, root), share)


@functools.lru_cache(maxsize=2)
def _sets(kind: type[Algorithm], name: str, root: str | None) -> Sets:
    return kind.load(name, root)


def plain(model: nn.Module, x: Tensor) -> Any:
    """What the model says of samples."""
    return model(x)


def batching(trial: Trial, dataset: data.Dataset) -> Callable[..., data.Batches]:
    """What makes batches of a split as the recipe wants them, standardised by the statistics of a data set."""
    layout = torch.channels_last if trial.option("channels_last") else torch.contiguous_format
    device = torch.device(trial.option("device"))
    return functools.partial(data.Batches, mean=dataset.mean, std=dataset.std, device=device, memory_format=layout)


def precision(trial: Trial, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast, where the recipe wants it."""
    return torch.autocast(device.type, torch.bfloat16) if trial.option("amp") else contextlib.nullcontext()

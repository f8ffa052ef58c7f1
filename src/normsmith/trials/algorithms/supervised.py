"""Labelled samples and the loss of their task: the algorithm of a recipe that names none."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normsmith import data
from normsmith.models.tasks import TASKS
from normsmith.trials.algorithms import Batch, Sets, Test, batching, plain, precision
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE, Share


class Supervised:
    """One data set: trained on its training set, judged on its test set; in a search of learning rates on a part of the first."""

    gives_conditions: ClassVar[bool] = False

    def __init__(self, trial: Trial, sets: Sets, share: Share = ALONE) -> None:
        self.trial, self.sets, self.share = trial, sets, share
        (dataset,) = sets
        self.loss_of = TASKS[dataset.task].loss
        train, test = dataset.train, dataset.test
        if trial.searching:
            train, test = train.divided(float(trial.option("validation")), seed=0)
        batches = batching(trial, dataset)
        self._train = batches(
            train, trial.batch, seed=trial.seed, augment=trial.option("augment"), drop_last=len(train) >= trial.batch
        )
        self.tests = (Test("", batches(test, 256, shuffle=False), plain),)
        self.steps = len(self._train)

    @staticmethod
    def load(name: str, root: str | None) -> Sets:
        """One data set; of a pair the first's training set and the second's test set."""
        return (data.load(name, root),)

    @staticmethod
    def fault(trial: Trial, sets: Sets) -> str:
        """Too few samples for a batch."""
        held = len(sets[0].train)
        return f"{trial.batch} samples for a batch, the training set has {held}" if held < trial.batch else ""

    @staticmethod
    def forward(model: nn.Module, x: Tensor) -> Any:
        """What the model says of samples."""
        return model(x)

    def batches(self, epoch: int, step: int) -> Iterator[Batch]:
        """Samples and their labels."""
        return self._train.epoch(epoch)

    def gradients(self, model: nn.Module, batch: Batch, progress: float) -> Iterator[Tensor]:
        """Those of one part after the other where statistics are of parts."""
        x, y = batch
        part, share = self.trial.statistics_batch, self.share
        for piece, target in zip(torch.split(x, part), torch.split(y, part), strict=True) if part < len(x) else ((x, y),):
            with precision(self.trial, x.device):
                loss = self.loss_of(model(own := share.part(piece)), share.part(target))
            if len(own) < len(x):
                loss = loss * (len(own) / len(x))
            loss.backward()  # type: ignore[no-untyped-call]
            yield loss.detach()

    def values(self) -> dict[str, float]:
        """Nothing beside the loss."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing."""

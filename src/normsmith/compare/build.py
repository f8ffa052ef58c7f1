"""The model of a trial: of the catalog with `norm=`, or of the user's, converted; and its task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normsmith import models
from normsmith.compare.labels import NONE
from normsmith.compare.names import is_code
from normsmith.compare.plan import Trial
from normsmith.data import Dataset
from normsmith.errors import ModelError, NormsmithError
from normsmith.locate import load_model
from normsmith.methods.catalog import written
from normsmith.models.catalog import find
from normsmith.models.tasks import TASKS, Located, Task
from normsmith.surgery.convert import convert
from normsmith.surgery.link import Kalman, link


def build(trial: Trial, dataset: Dataset) -> nn.Module:
    """The model with its first weights, which depend on the seed alone."""
    torch.manual_seed(trial.seed)
    method = trial.normalizer
    mapping: Mapping[Any, str | None] | None = None if isinstance(method, str) else dict(method)
    if not is_code(trial.model):
        norm = method if isinstance(method, str) else "batch"
        model = _of_catalog(trial.model, dataset, None if norm == NONE else norm)
    elif method == NONE:
        raise ModelError(f"a model of your own is expected with a normalizer to convert to: got 'none' for {trial.model!r}")
    else:
        model = load_model(trial.model)
    if mapping is not None or is_code(trial.model):
        convert(model, mapping or str(method))
        if any(isinstance(layer, Kalman) for layer in model.modules()):
            link(model, torch.zeros(2, *dataset.train.inputs.shape[1:]))
    return model


def _of_catalog(name: str, dataset: Dataset, norm: str | None) -> nn.Module:
    entry = find(written(name)[0])
    rows = entry.task == "sequence" and dataset.task == "classification"
    if entry.task != dataset.task and not rows:
        raise ModelError(f"{entry.name} expects data for {entry.task}: got {dataset.name}, which is for {dataset.task}")
    width = dataset.size[-1]
    channels = dataset.channels * width if rows else dataset.channels
    model = models.make(name, num_classes=len(dataset.classes), in_channels=channels, image_size=dataset.size[-2], norm=norm)
    return _ByRows(model) if rows else model


class _ByRows(nn.Module):
    """A network of sequences, given images: a row after the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """x is (N, C, H, W)."""
        y: Tensor = self.network(x.movedim(2, 1).flatten(2))
        return y


def task_of(dataset: Dataset) -> Task:
    """Loss and score on the targets as data sets have them: of a box, class and corners in one tensor."""
    task = TASKS[dataset.task]
    if dataset.task != "localisation":
        return task
    return replace(
        task,
        loss=lambda output, target: task.loss(output, Located(target[:, 0].long(), target[:, 1:])),
        score=lambda output, target: task.score(output, Located(target[:, 0].long(), target[:, 1:])),
    )


def try_on(trial: Trial, dataset: Dataset) -> str:
    """What is wrong with a trial, found by one forward in training; nothing if it can run."""
    try:
        model = build(trial, dataset)
        model.train()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model(torch.randn(trial.statistics_batch, *dataset.train.inputs.shape[1:], generator=generator))
    except NormsmithError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (a model of anyone's)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""

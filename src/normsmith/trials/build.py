"""The model of a trial: of the catalog with `norm=`, or of the user's, converted."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from normsmith import models
from normsmith.analysis import refusals
from normsmith.data import Dataset
from normsmith.errors import ModelError, NormsmithError
from normsmith.locate import load_model
from normsmith.methods._specs import written
from normsmith.models.catalog import find
from normsmith.models.tasks import TASKS
from normsmith.surgery.conditioned import conditions_of
from normsmith.surgery.convert import convert
from normsmith.surgery.link import Kalman, link
from normsmith.trials.algorithms import Algorithm, Sets, kind_of
from normsmith.trials.coordinates import Coordinates
from normsmith.trials.labels import NONE
from normsmith.trials.names import is_code
from normsmith.trials.plan import Trial


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
    if conditions_of(model) and not kind_of(trial).gives_conditions:
        raise ModelError(
            f"a normalizer is expected to work on its input alone with {trial.algorithm_name} training: got {trial.label!r}, which takes a "
            'condition with every sample; say algorithm = "adamatch" on a pair of domains, whose numbers are the conditions'
        )
    return model


def place(model: nn.Module, trial: Trial, algorithm: Algorithm) -> None:
    """Put the layers of a trial's model into the coordinates that its recipe wants, by what it is about to learn from."""
    if trial.reparametrize is not None:
        task = TASKS[algorithm.sets[0].task]
        Coordinates.of(trial.reparametrize).place(model, algorithm.batches(0, 0), trial.statistics_batch, task.loss)


def _of_catalog(name: str, dataset: Dataset, norm: str | None) -> nn.Module:
    bare, options = written(name)
    task = find(bare).task
    if task == "sequence" and dataset.task == "classification":
        name += ",rows=true" if options else ":rows=true"  # an image is read row by row
    elif task != dataset.task:
        raise ModelError(f"{bare} expects data for {task}: got {dataset.name}, which is for {dataset.task}")
    model: nn.Module = models.make(
        name, num_classes=len(dataset.classes), in_channels=dataset.channels, image_size=dataset.size[-1], norm=norm
    )
    return model


def try_on(trial: Trial, sets: Sets) -> str:
    """What is wrong with a trial, found by one forward in training; nothing if it can run."""
    dataset, kind = sets[0], kind_of(trial)
    fault = kind.fault(trial, sets)
    if fault:
        return fault
    try:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(trial.statistics_batch, *dataset.train.inputs.shape[1:], generator=generator)
        model = build(trial, dataset)
        if trial.ranks == 1:  # of several the first tries alone, and layers that see data would wait for the others
            place(model, trial, kind(trial, sets))
        found = refusals(model, x, forward=kind.forward)
    except NormsmithError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (a model of anyone's)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return f"{next(iter(found.values()))} ({', '.join(found)})" if found else ""

"""The model of a trial: of the catalog with `norm=`, or of the user's, converted."""

import torch
from torch import Tensor, nn

from normsmith import models
from normsmith.compare.names import NONE, is_code
from normsmith.compare.plan import Trial
from normsmith.data import Dataset
from normsmith.errors import ModelError, NormsmithError, TooFewValuesError
from normsmith.locate import load_model
from normsmith.methods.catalog import parse
from normsmith.surgery.convert import convert
from normsmith.surgery.link import link

_LINKED = {"kalman", "kalman_group"}


def build(trial: Trial, dataset: Dataset) -> nn.Module:
    """The model with its first weights, which depend on the seed alone."""
    torch.manual_seed(trial.seed)
    method = trial.normalizer
    if is_code(trial.model):
        model = load_model(trial.model)
        if method == NONE:
            raise ModelError(f"a model of your own is expected with a normalizer to convert to: got 'none' for {trial.model!r}")
        convert(model, dict(method) if isinstance(method, tuple) else method)
    else:
        norm = method if isinstance(method, str) else "batch"
        model = models.make(
            trial.model,
            num_classes=len(dataset.classes),
            in_channels=dataset.channels,
            image_size=dataset.size,
            norm=None if norm == NONE else norm,
        )
        if not isinstance(method, str):
            convert(model, dict(method))
    if any(parse(m)[0].name in _LINKED for m in _methods(trial) if m not in {None, NONE}):
        link(model, _example(trial, dataset))
    return model


def _methods(trial: Trial) -> list[str]:
    values = [trial.normalizer] if isinstance(trial.normalizer, str) else [value for _, value in trial.normalizer]
    return [value for value in values if value is not None]


def _example(trial: Trial, dataset: Dataset) -> Tensor:
    return torch.zeros(2, *dataset.train.inputs.shape[1:])


def try_on(trial: Trial, dataset: Dataset) -> str:
    """What is wrong with a trial, found by one forward in training; nothing if it can run."""
    try:
        model = build(trial, dataset)
        model.train()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model(torch.randn(trial.statistics_batch, *dataset.train.inputs.shape[1:], generator=generator))
    except TooFewValuesError as error:
        return str(error)
    except NormsmithError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (a model of anyone's)
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""

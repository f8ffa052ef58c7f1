"""Which normalizers would refuse a batch in training, asked before the training starts."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normsmith.analysis._still import holding
from normsmith.errors import TooFewValuesError
from normsmith.surgery._choice import candidates
from normsmith.surgery._models import Forward

_TORCH = "Expected more than 1"  # value per channel, or spatial element: how torch's sentences begin
_OURS = "expects more than one element"  # a warning of batch-free methods, whose output is then the bias


def refusals(model: nn.Module, batch: Any, *, forward: Forward | None = None) -> dict[str, str]:
    """What each normalizer that has a statistic of a single element in this batch says to it, by the layer's name; empty if all is well.

    The model runs once, in training, and is afterwards what it was. A layer that raises hands its input on, so that others behind it are
    heard too; warnings that an output does not depend on the input count. Batch norm of a single sample with several positions is legal.
    """
    found: dict[str, str] = {}
    with holding(model, "refusals", forward) as still, torch.no_grad():
        model.train()
        for candidate in candidates(model):
            layer: Any = candidate.layer
            layer.forward = _heard(layer.forward, candidate.name, found)
        still.call(lambda: still.output(batch), {})
    return found


def _heard(own: Callable[..., Any], name: str, found: dict[str, str]) -> Callable[..., Any]:
    """The forward of a layer, what it says about single elements taken down."""

    @functools.wraps(own)
    def forward(x: Any, *args: Any, **options: Any) -> Any:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                y = own(x, *args, **options)
            except TooFewValuesError as error:
                found[name] = str(error)
                return x
            except ValueError as error:
                if not str(error).startswith(_TORCH):
                    raise
                found[name] = str(error)
                return x
        for warning in said:
            if _OURS in str(warning.message):
                found[name] = str(warning.message)
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return y

    return forward

"""The options that LSTM, GRU and their cells have in common, written once: they take them as `**options: Unpack[Shared]`."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import torch

from normsmith.methods._options import typed_options
from normsmith.recurrent._norms import Norm


class Shared(TypedDict, total=False):
    """Those of all."""

    norm: Norm
    bias: bool
    max_steps: int
    h0_noise: float
    gamma: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class OfLSTM(Shared, total=False):
    """Those of an LSTM."""

    cell_norm: Norm
    forget_bias: float


@dataclass(frozen=True)
class Options:
    """The options with their defaults; what a GRU has no use for is at rest."""

    norm: Norm = "layer"
    cell_norm: Norm = None
    bias: bool = True
    max_steps: int = 100
    h0_noise: float = 0.0
    forget_bias: float = 0.0
    gamma: float = 0.1
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def given(self, owner: type[Any], options: Mapping[str, Any]) -> "Options":
        """These with those that the constructor of a class was given; one that it does not take is the error of Python."""
        for key in options:
            if key not in inspect.signature(owner).parameters:
                raise TypeError(f"{owner.__name__}.__init__() got an unexpected keyword argument {key!r}")
        return replace(self, **options)


def write_out_signature(cls: type[Any], start: Options) -> None:
    """Give a class whose constructor takes them as `**options` a signature that names them, with the defaults of `start`."""
    own = inspect.signature(cls.__init__)
    types = typed_options(own)  # none in a subclass of a user's
    named = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[key])
        for key, default in vars(start).items()
        if key in types
    ]
    kept = [p for p in own.parameters.values() if p.name != "self" and not (types and p.kind is p.VAR_KEYWORD)]
    cls.__signature__ = own.replace(parameters=[*kept, *named])

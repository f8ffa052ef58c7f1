"""A layer as surgery finds it: which method of the catalog it is, and everything a successor has to take over."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normsmith.methods._base import Normalizer

TORCH = _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.LocalResponseNorm


@dataclass(frozen=True, eq=False)
class Source:
    """A layer as found: the method it is, its size and options, its tensors by our names, and what it does besides."""

    method: str  # a name of the catalog
    num_features: int | tuple[int, ...]
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]  # parameters and buffers themselves, not copies
    channels_last: bool = False  # its channels are the last dimension, as in a transformer
    drop: nn.Module | None = None
    act: nn.Module | None = None
    beyond: tuple[str, ...] = ()  # what no successor takes over


class NotUnderstoodError(Exception):
    """Why a layer that looks like a normalizer cannot be read; caught where layers are gathered."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes, or seems to: torch's, ours, what says so in its name or keeps running statistics; no mere container."""
    if isinstance(module, Normalizer | TORCH):
        return True
    if type(module).__module__.startswith("torch.nn.utils"):  # what makes a weight of others, such as weight norm
        return False
    own = {*module._parameters.keys(), *module._buffers.keys()}
    named = "norm" in type(module).__name__.lower() and (bool(own) or not module._modules)
    seems = named or {"running_mean", "running_var"} <= own
    return seems and not any(isinstance(child, Normalizer | TORCH) for child in module.modules() if child is not module)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a layer by their names; a parametrised one by its value."""
    found = {key: t for key, t in (*module._parameters.items(), *module._buffers.items()) if t is not None}
    return found | {key: getattr(module, key) for key in getattr(module, "parametrizations", ())}


def dtype_and_device(source: Source) -> tuple[torch.dtype, torch.device] | None:
    """Those of the layer's first floating tensor."""
    return next(((t.dtype, t.device) for t in source.tensors.values() if t.is_floating_point()), None)

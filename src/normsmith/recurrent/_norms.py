"""The norms of a recurrent layer: how they are made, and whether one may see all steps at once."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer
from normsmith.methods.batch import BatchNorm
from normsmith.methods.catalog import CATALOG, parse
from normsmith.recurrent.step_batch import StepBatchNorm

Norm = str | type[Any] | Callable[..., Any] | None
_TORCH = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Identity)


def make_norm(
    norm: Norm,
    features: int,
    *,
    gamma: float,
    bias: bool,
    max_steps: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module | None:
    """What `norm` makes for the rows (N, features) of a step, its weight at `gamma`; without `bias` its bias is fixed at zero."""
    if norm is None:
        return None
    layer = _built(norm, features, bias, max_steps).to(device=device, dtype=dtype)
    if isinstance(layer, Normalizer):
        others = layer.example_inputs(torch.empty(1, features, 2, device="cpu"))
        if others:
            raise OptionError(
                f"a recurrent layer expects a norm of its input alone: got {norm!r}, which also takes {' and '.join(others)}; "
                'try norm="layer"'
            )
    weight, offset = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if isinstance(weight, nn.Parameter):
        nn.init.constant_(weight, gamma)
    if isinstance(offset, nn.Parameter) and not bias:
        offset.requires_grad_(False)
    return layer


def _built(norm: Any, features: int, bias: bool, max_steps: int) -> nn.Module:
    options: dict[str, Any] = {}
    factory, name = norm, None
    if isinstance(norm, str):
        entry, options = parse(norm)
        factory, name = entry.load(), entry.name
    if name == "batch" or factory is BatchNorm:
        return StepBatchNorm(features, max_steps=max_steps, bias=bias, **options)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise OptionError(
            f"a recurrent layer expects norm as a name of the catalog, a class, a factory or None: got {type(norm).__name__}; "
            "it makes several of them, of different sizes"
        )
    ours = isinstance(factory, type) and issubclass(factory, Normalizer)
    if ours and "bias" in inspect.signature(factory).parameters:
        options = {"bias": bias, **options}
    layer = factory((features,) if ours and factory.takes_shape else features, **options)
    if not isinstance(layer, nn.Module):
        raise OptionError(f"a recurrent layer expects norm to make modules: got {type(layer).__name__} from {norm!r}")
    return layer


def by_row(norm: nn.Module) -> bool:
    """Whether each row is normalized by itself, so that the rows of all steps may come together."""
    if not isinstance(norm, Normalizer):
        return type(norm) in _TORCH
    entry = next((e for e in CATALOG.values() if e.class_name == type(norm).__name__), None)
    return entry is not None and not (entry.batch_dependent or entry.random or entry.running)


def normed(norm: nn.Module, x: Tensor, step: int) -> Tensor:
    """The rows of one step, normalized."""
    if isinstance(norm, StepBatchNorm):
        norm.step = step
    y: Tensor = norm(x)
    return y

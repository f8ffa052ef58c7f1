"""Trial runs of a model that leave no trace, and what a plan would change in one, before anything is changed."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.surgery._constant import ROUNDING, Weighted
from normsmith.surgery._models import evaluating, tensors
from normsmith.surgery._plans import Plan


@dataclass(frozen=True)
class Error:
    """How far outputs are from what they were."""

    largest: float = 0.0
    relative: float = 0.0  # to the largest output

    def joined(self, other: "Error") -> "Error":
        """The worse of two."""
        return Error(max(self.largest, other.largest), max(self.relative, other.relative))


@contextlib.contextmanager
def trial(model: nn.Module, eager: bool) -> Iterator[None]:
    """In this block the model is in evaluation; modes, random state and buffers are put back. `eager` runs compiled parts as written."""
    kept = [
        (module, key, tensor, tensor.clone(), tensor._version)
        for module in model.modules()
        for key, tensor in module._buffers.items()
        if tensor is not None and not tensor.is_inference()
    ]
    with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext(), evaluating(model):
        try:
            yield
        finally:
            for module, key, tensor, was, version in kept:
                module._buffers[key] = tensor
                if tensor._version != version:
                    tensor.copy_(was)


def copied(example: Any) -> Any:
    """The example with tensors of its own: a model may write into them."""
    if isinstance(example, Tensor):
        return example.detach().clone()
    if isinstance(example, Mapping):
        return {key: copied(value) for key, value in example.items()}
    return tuple(copied(value) for value in example) if isinstance(example, tuple | list) else example


def outputs(output: Any) -> list[Tensor]:
    """Copies of the floating tensors of an output: it may hold memory of the model."""
    return [t.detach().clone() for t in tensors(output)]


def difference(found: Tensor, expected: Tensor) -> Error:
    """The error of one tensor; the same infinities, and NaN for NaN, are none."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return Error(float("inf"), float("inf"))
    if not found.numel():
        return Error()
    wide = torch.promote_types(found.dtype, torch.float32)
    one, other = found.to(wide), expected.to(wide)
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0, (one - other).abs()).nan_to_num(nan=float("inf"), posinf=float("inf"))
    largest, size = float(apart.amax()), _size(other)
    return Error(largest, largest / size if size else largest)


def differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Error:
    """The worst of several tensors."""
    if len(found) != len(expected):
        return Error(float("inf"), float("inf"))
    error = Error()
    for one, other in zip(found, expected, strict=True):
        error = error.joined(difference(one, other))
    return error


def is_rounding(error: Error, outputs: Sequence[Tensor]) -> bool:
    """Whether outputs that far apart can be the same: what is lost in one layer may grow in those that follow it."""
    loosest = max((ROUNDING.get(t.dtype, 0.0) for t in outputs), default=0.0)
    return error.relative <= math.sqrt(loosest)


class Rehearsal:
    """Hooks under which a forward of the model as it is tells what each plan would have put out for the same inputs."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        self.errors: dict[Plan, Error] = {}
        self.beyond: set[Plan] = set()  # those that are off by more than rounding
        self._waiting: dict[tuple[Plan, int, nn.Module | None], tuple[Tensor, Tensor, float]] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """In this block forwards are heard."""
        hooks = []
        for plan in self.plans:
            for first, second in [(plan.norm, layer) if plan.forward else (layer, plan.norm) for layer in plan.layers]:
                hooks.append(first.register_forward_hook(self._first(plan, second), with_kwargs=True))
                hooks.append(second.register_forward_hook(self._second(plan, first), with_kwargs=True))
        try:
            yield
        finally:
            self._waiting.clear()
            for hook in hooks:
                hook.remove()

    def _first(self, plan: Plan, second: nn.Module) -> Any:
        """At the first of the two layers the folded one is run on the same input."""

        @torch.no_grad()
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            layer = second if plan.forward else module
            assert isinstance(layer, Weighted)
            weight, bias = plan.weights(layer)
            with _lent(layer, weight, bias):
                given = (args or (next(iter(kwargs.values())),), {}) if plan.forward else (args, kwargs)
                instead = layer.forward(*given[0], **given[1])
            size = _size(instead) + _size(bias)
            key = (plan, id(output), second if plan.forward else None)
            self._waiting[key] = (output, plan.rest(instead), size)  # the output is held, that its identity stay its own

        return run

    def _second(self, plan: Plan, first: nn.Module) -> Any:
        """At the second one its output is there to compare with."""

        @torch.no_grad()
        def compare(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            source = args[0] if args else next(iter(kwargs.values()))
            found = self._waiting.pop((plan, id(source), module if plan.forward else None), None)
            if found is None:  # made by another of the layers that share the norm
                return
            _, instead, size = found
            error = difference(instead, output)
            self.errors[plan] = self.errors.get(plan, Error()).joined(error)
            weight = next(layer for layer in plan.layers if layer in {first, module}).weight
            if not error.largest <= max(ROUNDING.get(t.dtype, 0.0) for t in (output, weight)) * size:
                self.beyond.add(plan)

        return compare


@contextlib.contextmanager
def _lent(layer: Weighted, weight: Tensor, bias: Tensor) -> Iterator[None]:
    """In this block the layer has another weight and bias."""
    own = layer._parameters["weight"], layer._parameters["bias"]
    assert own[0] is not None
    try:
        for key, tensor in (("weight", weight), ("bias", bias)):
            layer._parameters[key] = nn.Parameter(tensor.to(own[0]), requires_grad=False)
        yield
    finally:
        layer._parameters["weight"], layer._parameters["bias"] = own


def _size(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    return float(tensor.abs().nan_to_num(0, 0, 0).amax()) if tensor.numel() else 0.0

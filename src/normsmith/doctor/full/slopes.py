"""Gradients on both sides of every normalizer, by one forward and backward in the statistics of training; and the strength of gamma decay.

||dL/dx|| / ||dL/dy|| is what the layer makes of a gradient: for batch norm at most weight / sigma (`analysis.bn_vjp`). It makes up for
the weights before the layer, so it is no fault by itself. Comparable from layer to layer is the gradient at the standardized values,
weight * dL/dy: by how much the loss answers to a disturbance of a given part of a deviation.

Gamma decay (`surgery/gamma_decay.py`): by its noise batch norm adds zeta * weight² to the loss, with
zeta = (rho + 2) / (8 M) F + mean A'' / (2 M), M the samples of a batch, for a soft ReLU behind it: A'' = sigmoid(y), F = mean A'' xhat².
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normsmith.analysis._still import holding
from normsmith.doctor.full.modes import by_batch
from normsmith.doctor.subject import Subject
from normsmith.errors import InputError
from normsmith.surgery.gamma_decay import Strength

if TYPE_CHECKING:
    from normsmith.doctor.observation import Layer


@dataclass(eq=False)
class Slope:
    """Sums over the calls of one layer."""

    order: int = -1  # in the forward
    squares_in: float = 0.0  # ||dL/dx||²
    squares_out: float = 0.0  # ||dL/dy||²
    squares_standard: float = 0.0  # ||weight dL/dy||²
    curvatures: list[Tensor] = field(default_factory=list)  # mean A'' per channel
    informations: list[Tensor] = field(default_factory=list)  # F per channel
    samples: int = 0  # of all calls

    @property
    def ratio(self) -> float | None:
        """||dL/dx|| / ||dL/dy||; None where no gradient came."""
        return math.sqrt(self.squares_in / self.squares_out) if self.squares_out > 0 else None

    @property
    def standardized(self) -> float:
        """||weight dL/dy||."""
        return math.sqrt(self.squares_standard)

    def decay(self, kurtosis: Tensor) -> Strength | None:
        """The strength of gamma decay, for the excess kurtosis of the layer's inputs; None where nothing came by."""
        if not self.curvatures:
            return None
        size = self.samples / len(self.curvatures)
        curvature, information = (torch.stack(parts).mean(0) for parts in (self.curvatures, self.informations))
        return Strength((kurtosis.cpu().clamp(-2, 30) + 2) / (8 * size) * information, curvature / (2 * size))


@dataclass(eq=False)
class _Call:
    layer: "Layer"
    x: Tensor
    y: Tensor | None = None


def pass_back(
    subject: Subject, layers: Sequence["Layer"], batches: Iterable[Any], *, with_loss: bool = True
) -> dict[str, Slope]:
    """The slopes of every layer over these batches; without a loss only what gamma decay needs."""
    found = {layer.name: Slope() for layer in layers}
    moving = [layer.module for layer in layers if layer.by_batch]
    with holding(subject.model, "examine", evaluating=True) as still, by_batch(moving):
        for batch in batches:
            still.call(lambda batch=batch: _one(subject, layers, batch, found, with_loss), {})  # type: ignore[misc]
    return found


def _one(subject: Subject, layers: Sequence["Layer"], batch: Any, found: dict[str, Slope], with_loss: bool) -> None:
    with _taking(layers) as calls:
        output = subject.output(subject.model, batch)
    whole = [call for call in calls if call.y is not None]
    for call in whole:
        _decay(call, found[call.layer.name])
    if not with_loss:
        return
    loss = subject.value(subject.model, output, batch)
    if not bool(loss.isfinite()):
        raise InputError("examine expects a finite loss to take gradients of: got NaN or infinity; look at the batch")
    ends = [t for call in whole for t in (call.x, call.y) if t is not None]
    slopes = iter(torch.autograd.grad(loss, ends, allow_unused=True, materialize_grads=True))
    for order, call in enumerate(whole):
        slope, dx, dy = found[call.layer.name], next(slopes).double(), next(slopes).double()
        slope.order = order if slope.order < 0 else slope.order
        slope.squares_in += dx.square().sum().item()
        slope.squares_out += dy.square().sum().item()
        axes = [axis for axis in range(dy.dim()) if axis != _channels(call)]
        gain = call.layer.gain().to(dy.device).flatten()
        slope.squares_standard += (dy.square().sum(axes) * gain.square()).sum().item()


def _channels(call: _Call) -> int:
    return call.x.dim() - 1 if call.layer.source.channels_last else 1


@contextmanager
def _taking(layers: Sequence["Layer"]) -> Iterator[list[_Call]]:
    """In this block every call of the layers is taken down, with an input of its own, so that its gradient came through the layer."""
    calls: list[_Call] = []
    handles = [hook for layer in layers for hook in _hooks(layer, calls)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _hooks(layer: "Layer", calls: list[_Call]) -> Iterator[Any]:
    def enter(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        key = None if arguments else next(iter(options))
        x = arguments[0] if key is None else options[key]
        if not x.is_floating_point() or x.dim() < 2 or not isinstance(layer.source.num_features, int):
            return None
        alias = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        calls.append(_Call(layer, alias))
        return ((alias, *arguments[1:]), options) if key is None else (arguments, {**options, key: alias})

    def leave(_: nn.Module, arguments: tuple[Any, ...], y: Any) -> Any:
        mine = next((call for call in reversed(calls) if call.layer is layer and call.y is None), None)
        if mine is None or not isinstance(y, Tensor):
            return None
        mine.y = y
        return y.clone()  # an activation in place behind the layer must not replace what is differentiated

    register: Callable[..., Any] = layer.module.register_forward_pre_hook
    yield register(enter, with_kwargs=True)
    yield layer.module.register_forward_hook(leave)


@torch.no_grad()
def _decay(call: _Call, slope: Slope) -> None:
    """Curvature and information of one call of a batch norm."""
    assert call.y is not None
    if not call.layer.by_batch or call.layer.source.method != "batch" or call.layer.source.act is not None:
        return
    x, y = (t.detach().movedim(_channels(call), 0).flatten(1).double() for t in (call.x, call.y))
    standard = (x - x.mean(1, keepdim=True)) * (x.var(1, unbiased=False, keepdim=True) + call.layer.eps).rsqrt()
    curvature = y.sigmoid()
    slope.curvatures.append(curvature.mean(1).cpu())
    slope.informations.append((curvature * standard.square()).mean(1).cpu())
    slope.samples += call.x.shape[0]

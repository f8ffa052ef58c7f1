"""Hooks on normalizers, which look at what they read, and on what may be right before one."""

import contextlib
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.doctor.observation import Layer, Observation
from normsmith.surgery._constant import is_weighted

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Passing:
    """The batch that is on its way through the model."""

    def __init__(self) -> None:
        self.numbers = torch.empty(0, dtype=torch.int64)  # of its samples
        self.forwards = 0

    def begin(self, numbers: Tensor) -> None:
        """Before the model gets it."""
        self.numbers, self.forwards = numbers, 0


def first_of(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The input of a call."""
    return arguments[0] if arguments else next(iter(options.values()))


@contextlib.contextmanager
def watching(seen: Observation, passing: Passing) -> Iterator[None]:
    """In this block every forward of the model is looked at."""
    made: dict[int, tuple[weakref.ref[Tensor], str, bool]] = {}
    names = {module: name for name, module in seen.model.named_modules()}

    def remember(module: nn.Module, _: Any, y: Any) -> None:
        if isinstance(y, Tensor):
            made[id(y)] = weakref.ref(y), names[module], getattr(module, "bias", None) is not None

    def count(*_: Any) -> None:
        passing.forwards += 1
        if origins and seen.batches > 1:
            now = [layer.before for layer in seen.layers]
            if now == before and all(layer.calls for layer in seen.layers):  # the last batch brought nothing new
                while origins:
                    origins.pop().remove()
            before[:] = now

    before: list[str] = []
    origins = [m.register_forward_hook(remember) for m in names if is_weighted(m)]
    handles = [*origins, seen.model.register_forward_pre_hook(count)]
    for layer in seen.layers:

        def look(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], layer: Layer = layer) -> None:
            begin = time.perf_counter()
            x = first_of(arguments, options)
            origin = made.get(id(x))
            if origin is not None and origin[0]() is x:
                layer.before, layer.biased = origin[1:]
            _look(layer, x, passing.numbers)
            layer.seconds += time.perf_counter() - begin

        def compare(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], y: Any, layer: Layer = layer) -> None:
            x = first_of(arguments, options)
            if isinstance(y, Tensor) and x.stride() == y.stride() and x.shape == y.shape:
                return  # as nearly always
            before, after = memory_format(x), memory_format(y)
            if before and after and before != after:
                layer.flips, layer.flip = layer.flips + 1, f"{before} to {after}"

        handles.append(layer.module.register_forward_pre_hook(look, with_kwargs=True))
        handles.append(layer.module.register_forward_hook(compare, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def memory_format(x: Any) -> str:
    """Whether the channels of a picture are last in memory; empty where both or neither can be said."""
    last = _LAST.get(x.dim()) if isinstance(x, Tensor) else None
    if last is None:
        return ""
    first, second = x.is_contiguous(), x.is_contiguous(memory_format=last)
    return "" if first == second else "contiguous" if first else "channels_last"


def _look(layer: Layer, x: Tensor, numbers: Tensor) -> None:
    """Take down one input."""
    layer.calls += 1
    if layer.source.channels_last and x.dim() > 2:
        x = x.movedim(-1, 1)
    if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point() or x.shape[1] != layer.source.num_features:
        return
    rows, channels = x.shape[:2]
    positions = x.numel() // (rows * channels)
    layer.samples.append(rows)
    layer.positions = positions if not layer.positions else min(layer.positions, positions)
    samples = numbers.shape[0]
    whole = samples > 0 and rows % samples == 0  # rows of one sample are adjacent, as in x.flatten(0, 1)
    layer.take(x, numbers if whole else None)

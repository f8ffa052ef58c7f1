"""The first lengths of weight norm, by data: every output channel begins with mean 0 and deviation 1."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import InputError
from normsmith.weights._rows import Rows, Weighted


def initialise(model: nn.Module, layers: Sequence[nn.Module], data: Any) -> None:
    """Run the model once in evaluation; each layer is set before what follows it sees its output. Without a bias the mean stays."""
    done: set[nn.Module] = set()

    def adjust(layer: nn.Module, _: Any, y: Tensor) -> Tensor | None:
        if layer in done:
            return None
        done.add(layer)
        return _adjusted(layer, y)

    modes = {module: module.training for module in model.modules()}
    with contextlib.ExitStack() as stack, torch.no_grad():
        stack.enter_context(_hooked(layers, adjust))
        try:
            model.eval()
            if isinstance(data, Mapping):
                model(**data)
            else:
                model(*data) if isinstance(data, tuple | list) else model(data)
        finally:
            for module, training in modes.items():
                module.training = training


@contextlib.contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Any) -> Iterator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adjusted(layer: nn.Module, y: Tensor) -> Tensor:
    """The output as it is after the lengths and the bias of the layer were set by it."""
    assert isinstance(layer, Weighted)
    channel = y.dim() - 1 if isinstance(layer, nn.Linear) else y.dim() - layer.weight.dim() + 1
    columns = y.movedim(channel, -1).flatten(0, -2)
    mean, deviation = columns.mean(0), columns.std(0, correction=0)
    if not bool((mean + deviation).isfinite().all()):
        raise InputError(f"place expects data with finite outputs: got NaN or infinity behind a {type(layer).__name__}")
    scale = torch.where(deviation > 0, 1 / deviation, 1.0)
    g: Tensor = layer.parametrizations["weight"].original0  # type: ignore[index, union-attr]
    g.mul_(scale.to(g).view(Rows(layer, tuple(layer.weight.shape)).column()))
    shift = mean if layer.bias is not None else torch.zeros_like(mean)
    if layer.bias is not None:
        layer.bias.copy_((layer.bias - mean) * scale)
    return ((y.movedim(channel, -1) - shift) * scale).movedim(-1, channel)

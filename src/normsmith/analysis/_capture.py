"""What goes into linear and convolutional layers, and what gradient comes back to their outputs, sample by sample."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Call:
    """One run of a layer: its input, and its output as the graph knows it."""

    layer: Layer
    x: Tensor
    h: Tensor

    def inputs(self, homogeneous: bool) -> Tensor:
        """(N, T, in) in float64: what is multiplied with the weight, at each of T positions; with a 1 appended for the bias."""
        o = (
            self.x.reshape(self.x.shape[0], -1, self.x.shape[-1])
            if isinstance(self.layer, nn.Linear)
            else _patches(self.layer, self.x)
        )
        o = o.double()
        return F.pad(o, (0, 1), value=1.0) if homogeneous and self.layer.bias is not None else o

    def gradients(self, slope: Tensor) -> Tensor:
        """(N, T, out) in float64, of the gradient at the output."""
        flat = (
            slope.reshape(slope.shape[0], -1, slope.shape[-1])
            if isinstance(self.layer, nn.Linear)
            else slope.flatten(2).transpose(1, 2)
        )
        return flat.double()


class Capture:
    """In this block every run of the layers is taken down; hooks are gone after it."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = list(layers)
        self.calls: list[Call] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "Capture":
        for layer in self._layers:
            inputs: list[Tensor] = []  # several if the layer runs inside itself, which no layer of torch does
            self._hooks += [
                layer.register_forward_pre_hook(partial(self._before, inputs), with_kwargs=True),
                layer.register_forward_hook(partial(self._after, inputs)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, inputs: list[Tensor], module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = arguments[0] if arguments else next(iter(options.values()))
        inputs.append(x.detach())

    def _after(self, inputs: list[Tensor], module: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        self.calls.append(Call(module, inputs.pop(), output))
        return output.clone()  # an activation in place behind the layer must not replace the output that is differentiated


def cannot_be_read(call: Call, samples: int) -> str:
    """Why a run cannot be taken apart by samples; empty if it can."""
    if not isinstance(call.layer, nn.Linear) and call.layer.groups > 1:
        return f"has {call.layer.groups} groups, each of which would be a block of its own"
    batched = call.x.dim() >= 2 if isinstance(call.layer, nn.Linear) else call.x.dim() == len(call.layer.kernel_size) + 2
    if not batched or call.x.shape[0] != samples:
        return f"is given {tuple(call.x.shape)}, which does not begin with the {samples} samples"
    if not call.h.requires_grad:
        return "has no gradient at its output"
    return ""


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """(N, T, in · kernel) of (N, in, *spatial): what the kernel sees at each position, in the order of the weight."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, _padding(layer), mode=mode)
    for axis, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    rank = len(layer.kernel_size)
    x = x.movedim(1, 1 + rank)  # samples, positions, channels, kernel
    return x.reshape(x.shape[0], math.prod(x.shape[1 : 1 + rank]), -1)


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Sequence[int]:
    """The padding in the order of F.pad: last axis first, both sides of each."""
    found: list[int] = []
    for axis, (size, gap) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        if layer.padding == "same":
            both = gap * (size - 1)
            found = [both // 2, both - both // 2, *found]
        elif isinstance(layer.padding, str):
            found = [0, 0, *found]
        else:
            found = [layer.padding[axis], layer.padding[axis], *found]
    return found

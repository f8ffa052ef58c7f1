"""What a linear or convolutional layer is besides its numbers."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Plain = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_LAYERS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Geometry:
    """Which inputs meet which weights: no kernel means a linear layer."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    pads: tuple[int, ...] = ()  # as F.pad takes them, for the modes that are not zeros

    @classmethod
    def of(cls, layer: Plain) -> "Geometry":
        """That of a layer of torch's."""
        if isinstance(layer, nn.Linear):
            return cls()
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        return cls(
            tuple(layer.kernel_size),
            tuple(layer.stride),
            padding,
            tuple(layer.dilation),
            layer.groups,
            layer.padding_mode,
            tuple(layer._reversed_padding_repeated_twice),
        )

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer gives with these weights."""
        if not self.kernel:
            return F.linear(x, weight, bias)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self.pads, mode=self.padding_mode), 0
        convolve: Any = _CONVOLUTIONS[len(self.kernel) - 1]
        y: Tensor = convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return y

    def rows(self, x: Tensor) -> Tensor:
        """(samples and positions, channels) of an input or output of the layer."""
        channels = -1 - len(self.kernel)
        return x.movedim(channels, -1).reshape(-1, x.shape[channels])

    def samples(self, x: Tensor) -> int:
        """How many samples an input has: one if it comes without a dimension for them."""
        return x.shape[0] if x.dim() > len(self.kernel) + 1 else 1

    def blocks(self, weight: Tensor) -> Tensor:
        """(groups, outputs, inputs, kernel positions) of a weight."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)

    def unblocked(self, blocks: Tensor) -> Tensor:
        """A weight as the layer has it."""
        return blocks.reshape(-1, blocks.shape[2], *self.kernel)

    def plain(self, weight: nn.Parameter, bias: nn.Parameter | None) -> Plain:
        """A layer of torch's that holds these parameters."""
        kind, options = nn.Linear, {"device": "meta", "bias": bias is not None}
        if self.kernel:
            kind = _LAYERS[len(self.kernel) - 1]
            options |= {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
            options |= {"kernel_size": self.kernel, "padding_mode": self.padding_mode}
        layer: Plain = kind(weight.shape[1] * self.groups, weight.shape[0], **options)  # type: ignore[arg-type]
        layer.weight, layer.bias = weight, bias
        return layer

"""A weight as rows: one for each output channel, with all that it is summed over; and the layers that have such weights."""

import math

from torch import Tensor, nn

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


class Rows:
    """How the weight of a layer is cut: in transposed convolutions (in, out / groups, *kernel) output channels are in dimension 1."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.groups = layer.groups if isinstance(layer, TRANSPOSED) else 0  # 0: output channels are in dimension 0
        self.number = shape[1] * self.groups if self.groups else shape[0]
        self.fan_in = math.prod(shape) // self.number

    def of(self, weight: Tensor) -> Tensor:
        """The weight as (output channels, fan-in)."""
        if not self.groups:
            return weight.flatten(1)
        parts = weight.view(self.groups, self.shape[0] // self.groups, *self.shape[1:]).transpose(1, 2)
        return parts.reshape(self.number, self.fan_in)

    def back(self, rows: Tensor) -> Tensor:
        """Rows in the shape of the weight."""
        if not self.groups:
            return rows.view(self.shape)
        parts = rows.view(self.groups, self.shape[1], self.shape[0] // self.groups, *self.shape[2:])
        return parts.transpose(1, 2).reshape(self.shape)

    def column(self) -> tuple[int, ...]:
        """The shape in which torch keeps a number for each row; where it cannot, with groups in a transposed convolution, (rows, 1)."""
        if not self.groups:
            return (self.number, *[1] * (len(self.shape) - 1))
        return (1, self.number, *[1] * (len(self.shape) - 2)) if self.groups == 1 else (self.number, 1)

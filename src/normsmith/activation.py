"""An activation behind an affine map: which of torch's it is, as function, as module and as word.

All are zero at zero, so that padding stays zero, and each is a function of one number that a pass over memory computes for nothing.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.kernels import Kind

SLOPE = 0.01  # of leaky_relu below zero, as torch has it
MODULES: dict[Kind, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


@dataclass(frozen=True)
class Activation:
    """One of `MODULES`; the slope is that of leaky_relu."""

    name: Kind
    slope: float = 0.0

    def __call__(self, y: Tensor) -> Tensor:
        """By torch's own function."""
        found: Tensor = F.leaky_relu(y, self.slope) if self.name == "leaky_relu" else getattr(F, self.name)(y)
        return found

    def __str__(self) -> str:
        usual = self.name != "leaky_relu" or self.slope == SLOPE
        return self.name if usual else f"{self.name}:negative_slope={self.slope!r}"

    def module(self) -> nn.Module:
        """The layer of torch.nn."""
        return nn.LeakyReLU(self.slope) if self.name == "leaky_relu" else MODULES[self.name]()

    @staticmethod
    def of(module: nn.Module | None) -> "Activation | None":
        """What a layer of torch.nn does, if it is one of these."""
        name = next((name for name, kind in MODULES.items() if type(module) is kind), None)
        slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
        return None if name is None or not math.isfinite(slope) else Activation(name, slope)

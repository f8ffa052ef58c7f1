"""The operations on cut tensors that mixtures need beside the four: K components, and every element's share in each.

    shares(x, density, measures)                       the shares of a joint mixture, (K, N, S), which other operations take in its place,
                                                       and the moments weighted by them, taken on the way
    weighted_moments(x, by)                            K weighted Moments of every channel, (K, C); the count is the sum of the shares
    weighted_affine(x, by, center, scale, bias)        y = sum_k share_k * (x - center_k) * scale_k + bias
    weighted_grad_sums(dy, x, by, center)              sums of dy * share_k and of dy * share_k * (x - center_k)
    weighted_grad_input(dy, x, by, scale, pull, through)   dx, and where the gradient goes `through` the shares that of the density

`by` is a `Density` of separate mixtures, one a channel, whose shares every operation computes anew, element by element: K copies of x are
never written. Or it is the shares of a joint mixture, of a K-th of C the size of x, in which all channels of a position are one point.
Where x is `masked`, a NaN in it is an element that does not count; else it is one that was there.

Backends are those of `kernels/__init__.py`.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from normsmith.kernels import Sums
from normsmith.moments import Moments


class Density(NamedTuple):
    """log density = constant - precision * (x - mean)² / 2, for each component, (K, C); of a joint one the constant is (K, 1)."""

    constant: Tensor
    mean: Tensor
    precision: Tensor
    joint: bool = False

    @staticmethod
    def of(log_prior: Tensor, mean: Tensor, var: Tensor, *, joint: bool = False, temperature: float = 1.0) -> "Density":
        """A mixture of Gaussians with their normalising constants; a temperature above 1 makes the shares more even."""
        logs = -0.5 * var.log()
        constant = log_prior + (logs.sum(1, keepdim=True) if joint else logs)
        return Density(constant / temperature, mean, 1 / (var * temperature), joint)

    def detach(self) -> "Density":
        """The same numbers, cut from the graph."""
        return Density(self.constant.detach(), self.mean.detach(), self.precision.detach(), self.joint)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a gradient may go to."""
        return self.constant, self.mean, self.precision


By = Density | Tensor  # a joint mixture's shares, (K, N, S)


class Draw(NamedTuple):
    """What pulls at an element besides dy: (slope, offset) per component, around weighted moments."""

    center: Tensor
    offset: Tensor
    slope: Tensor
    mean: Tensor
    var: Tensor


class MixtureBackend(Protocol):
    """A module with these operations."""

    def shares(
        self, x: Tensor, density: Density, *, measures: bool = True, masked: bool = False
    ) -> tuple[Tensor, Moments | None]: ...

    def weighted_moments(self, x: Tensor, by: By, *, masked: bool = False) -> Moments: ...

    def weighted_affine(self, x: Tensor, by: By, center: Tensor, scale: Tensor, bias: Tensor) -> Tensor: ...

    def weighted_grad_sums(self, dy: Tensor, x: Tensor, by: By, center: Tensor, *, masked: bool = False) -> Sums: ...

    def weighted_grad_input(
        self, dy: Tensor, x: Tensor, by: By, scale: Tensor, draw: Draw, *, through: bool, masked: bool = False
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]: ...


def fraction(total: Tensor) -> Tensor:
    """What to divide by, where a sum of shares may be zero."""
    return total.clamp_min(torch.finfo(total.dtype).tiny)

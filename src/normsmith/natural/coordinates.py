"""The coordinates in which a layer is trained: W = R V U and b = R d - W c, there and back, for weights, momenta and gradients.

Weights are in blocks (groups, outputs, inputs, kernel positions), all else by groups: U (groups, rank, inputs), c (groups, inputs),
R (groups, outputs, outputs), d (groups, outputs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """U, c, R, all in float64; without R, it is the identity. `inverse` undoes U, if it is known."""

    whitening: Tensor
    center: Tensor
    restoring: Tensor | None = None
    inverse: Tensor | None = None

    def undoing(self) -> Tensor:
        """What undoes U."""
        return torch.linalg.pinv(self.whitening) if self.inverse is None else self.inverse

    def function(self, weight: Tensor, bias: Tensor | None) -> Pair:
        """W and b of V and d; linear in both, so that it is also what a velocity of V and d is for W and b."""
        whole = between(self.restoring, weight, self.whitening)
        shift = -torch.einsum("goik,gi->go", whole, self.center)
        if bias is None:
            return whole, shift
        return whole, shift + (bias if self.restoring is None else torch.einsum("gpo,go->gp", self.restoring, bias))

    def parameters(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """V and d of W and b; as near as can be, where U has fewer rows than columns."""
        shifted = bias + torch.einsum("goik,gi->go", weight, self.center)
        back = None if self.restoring is None else torch.linalg.inv(self.restoring)
        inner = shifted if back is None else torch.einsum("gop,gp->go", back, shifted)
        return between(back, weight, self.undoing()), inner

    def slopes(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of V and d, of those of W and b."""
        centred = weight - torch.einsum("go,gi,k->goik", bias, self.center, weight.new_ones(weight.shape[-1]))
        return self._turned(centred, bias, self.whitening.mT, None if self.restoring is None else self.restoring.mT)

    def slopes_of_function(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of W and b, of those of V and d."""
        back = None if self.restoring is None else torch.linalg.inv(self.restoring).mT
        centred, plain = self._turned(weight, bias, self.undoing().mT, back)
        return centred + torch.einsum("go,gi,k->goik", plain, self.center, weight.new_ones(weight.shape[-1])), plain

    @staticmethod
    def _turned(weight: Tensor, bias: Tensor, right: Tensor, left: Tensor | None) -> tuple[Tensor, Tensor]:
        turned = bias if left is None else torch.einsum("gpo,go->gp", left, bias)
        return between(left, weight, right), turned


def between(left: Tensor | None, weight: Tensor, right: Tensor) -> Tensor:
    """left V right, for every kernel position."""
    found = weight.mT @ right.unsqueeze(1)  # (groups, outputs, kernel, inputs)
    if left is not None:
        found = (left @ found.flatten(2)).view(left.shape[0], left.shape[1], *found.shape[2:])
    return found.mT

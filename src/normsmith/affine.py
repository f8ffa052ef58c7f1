"""What a mix gives back: the affine map of every cell, y = (x - center) * scale + bias.

In general a triple (center, scale, bias), each a tensor that broadcasts to (N, C) or a plain number. Most methods end in the same way,
by standardizing some moments and applying a weight and a bias; they return a `Standardized`, whose derivative is written out here: for
batch norm that is all there is to differentiate, and asking autograd for it costs more than the sums over a small batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normsmith.moments import Moments

Triple = tuple[Tensor | float, Tensor, Tensor | float]


class Standardized(NamedTuple):
    """Data of these moments brought to mean 0 and variance 1, then times `weight` plus `bias`, where there are any."""

    moments: Moments
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def triple(self) -> Triple:
        """Center, scale and bias."""
        center, scale = self.moments.standardize(self.eps)
        return center, scale if self.weight is None else scale * self.weight, 0.0 if self.bias is None else self.bias

    def pull(self, scale: Tensor, total: Tensor, product: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of this value with its gradient, from the sums of dy and of dy * (x - center) per cell."""
        inverse = (self.moments.var + self.eps).rsqrt()
        d_scale = product * inverse
        found = [
            (self.moments.mean, _fit(-scale * total, self.moments.mean)),
            (self.moments.var, _fit(-0.5 * scale * inverse * d_scale, self.moments.var)),
        ]
        if self.weight is not None:
            found.append((self.weight, _fit(d_scale, self.weight)))
        if self.bias is not None:
            found.append((self.bias, _fit(total, self.bias)))
        return found


def pull_triple(triple: Triple, scale: Tensor, total: Tensor, product: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of a triple with its gradient, from the same sums."""
    center, slope, bias = triple
    found = [(slope, _fit(product, slope))]
    if isinstance(center, Tensor):
        found.append((center, _fit(-scale * total, center)))
    if isinstance(bias, Tensor):
        found.append((bias, _fit(total, bias)))
    return found


def through(found: Sequence[tuple[Tensor, Tensor]], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the leaves: directly where a leaf is itself among the tensors, else by autograd; None for no dependence."""
    slots = {id(leaf): i for i, leaf in enumerate(leaves)}
    grads: list[Tensor | None] = [None] * len(leaves)
    rest = []
    for tensor, grad in found:
        if id(tensor) in slots:
            grads[slots[id(tensor)]] = _sum(grads[slots[id(tensor)]], grad)
        elif tensor.requires_grad:
            rest.append((tensor, grad))
    if rest and leaves:
        tensors, outer = zip(*rest, strict=True)
        for i, grad in enumerate(torch.autograd.grad(tensors, leaves, outer, allow_unused=True)):
            grads[i] = _sum(grads[i], grad)
    return grads


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _fit(grad: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of a tensor that was broadcast, in its own shape and type."""
    return (grad if grad.shape == tensor.shape else grad.sum_to_size(tensor.shape)).to(tensor.dtype)

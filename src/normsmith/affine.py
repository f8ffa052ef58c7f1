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

    def is_closed(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it holds moments of x, however pooled, and these tensors themselves, so that `pull` is the whole derivative."""
        own = [t for t in (self.weight, self.bias) if t is not None]
        return self.moments.direct and all(any(t is given for given in tensors) for t in own)

    def pull(self, scale: Tensor, total: Tensor, product: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Mean, variance, and weight and bias if there are, each with its gradient, from the sums of dy and of dy * (x - center)."""
        inverse = (self.moments.var + self.eps).rsqrt()
        d_scale = product * inverse
        found = [
            (self.moments.mean, _fit(scale * total, self.moments.mean).neg()),
            (self.moments.var, _fit(scale * inverse * d_scale, self.moments.var).mul(-0.5)),
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
    grads: list[Tensor | None] = [None] * len(leaves)
    rest = []
    for tensor, grad in found:
        slot = next((i for i, leaf in enumerate(leaves) if leaf is tensor), None)
        if slot is not None:
            grads[slot] = _sum(grads[slot], grad)
        elif tensor.requires_grad:
            rest.append((tensor, grad))
    wanted = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    if rest and wanted:
        tensors, outer = zip(*rest, strict=True)
        for i, grad in zip(
            wanted, torch.autograd.grad(tensors, [leaves[i] for i in wanted], outer, allow_unused=True), strict=True
        ):
            grads[i] = _sum(grads[i], grad)
    return grads


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _fit(grad: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of a tensor that was broadcast, in its own shape and type."""
    if grad.shape != tensor.shape:
        grad = grad.view(tensor.shape) if grad.numel() == tensor.numel() else grad.sum_to_size(tensor.shape)
    return grad if grad.dtype == tensor.dtype else grad.to(tensor.dtype)

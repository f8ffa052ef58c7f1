"""What a mix gives back: the affine map of every cell, y = (x - center) * scale + bias.

In general a triple (center, scale, bias), each a tensor that broadcasts to (N, C) or a plain number. Most methods end in the same way,
by standardizing some moments and applying a weight and a bias; they return a `Standardized`, whose derivative is written out here: for
batch norm that is all there is to differentiate, and asking autograd for it costs more than the sums over a small batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normsmith.moments import Moments, Pooled, Pull, fit

Triple = tuple[Tensor | float, Tensor, Tensor | float]


@dataclass(eq=False)
class Standardized:
    """Data of these moments brought to mean 0 and variance 1, then times `weight` plus `bias`, where there are any.

    Not `centered`, they are only divided by the root of their mean square.
    """

    moments: Moments
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centered: bool = True
    _found: Tensor | None = field(default=None, init=False)

    def _inverse(self) -> Tensor:
        """What data are divided by, as a factor; kept for `pull`."""
        if self._found is None:
            power = self.moments.var if self.centered else self.moments.var + self.moments.mean.square()
            self._found = (power + self.eps).rsqrt()
        return self._found

    def triple(self) -> Triple:
        """Center, scale and bias."""
        center, scale = self.moments.mean if self.centered else 0.0, self._inverse()
        return center, scale if self.weight is None else scale * self.weight, 0.0 if self.bias is None else self.bias

    def is_closed(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it is made of moments of x and of these tensors themselves, so that `pull` is the whole derivative."""
        own = (self.weight, self.bias, *self.moments.sources())
        return all(isinstance(t, Pooled) or t is None or any(t is given for given in tensors) for t in own)

    def pull(self, scale: Tensor, total: Tensor, product: Tensor, to: Pull) -> None:
        """Send the gradients that follow from the sums of dy and of dy * (x - center) to where they come from."""
        mean, var = self.moments.mean, self.moments.var
        d_scale, d_mean, d_var = to.unscale(total, product, scale, self._inverse())
        d_var = fit(d_var, var)
        self.moments.pull(fit(d_mean, mean) if self.centered else 2 * mean * d_var, d_var, to)
        if self.weight is not None:
            to.tensors.append((self.weight, fit(d_scale, self.weight)))
        if self.bias is not None:
            to.tensors.append((self.bias, fit(total, self.bias)))


def pull_triple(triple: Triple, scale: Tensor, total: Tensor, product: Tensor, to: Pull) -> None:
    """The same for a triple."""
    center, slope, bias = triple
    to.tensors.append((slope, fit(product, slope)))
    if isinstance(center, Tensor):
        to.tensors.append((center, fit(-scale * total, center)))
    if isinstance(bias, Tensor):
        to.tensors.append((bias, fit(total, bias)))


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

"""What a mix gives back: the affine map of every cell, y = (x - center) * scale + bias.

In general a triple (center, scale, bias), each a tensor that broadcasts to (N, C) or a plain number. Most methods end in the same way,
by standardizing some moments and applying a weight and a bias; they return a `Standardized`, whose derivative is written out here: for
batch norm that is all there is to differentiate, and asking autograd for it costs more than the sums over a small batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normsmith.arithmetic import AtOnce, Bending, Pair, Towards
from normsmith.derivatives import fit
from normsmith.moments import Moments, Pooled, Pull

Triple = tuple[Tensor | float, Tensor, Tensor | float]


@dataclass(eq=False)
class Standardized:
    """Data of these moments brought to mean 0 and variance 1, then times `weight` plus `bias`, where there are any.

    Not `centered`, they are only divided by the root of their mean square. `towards` other moments they are drawn before weight and bias.
    """

    moments: Moments
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    centered: bool = True
    towards: Towards | None = None
    _factors: Pair | None = field(default=None, init=False)
    _drawn: Pair | None = field(default=None, init=False)

    def _factor(self) -> Pair:
        """What data are divided by, as a factor, alone and times the weight; kept for `pull`."""
        if self._factors is None:
            weight = self._applied()[0]
            self._factors = self.moments.by.standardize(self.moments, weight, self.eps, centered=self.centered)
        return self._factors

    def _applied(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias as standardized data get them."""
        weight, bias = self.weight, self.bias
        if self.towards is None:
            return weight, bias
        ratio, drift = self._draw(self.towards)
        if weight is not None:
            ratio, drift = ratio * weight, drift * weight
        return ratio, drift if bias is None else drift + bias

    def _draw(self, to: Towards) -> Pair:
        """Ratio and drift, constants; kept for `pull`."""
        if self._drawn is None:
            inverse = (to.var + self.eps).rsqrt()
            ratio = ((self.moments.var.detach() + self.eps).sqrt() * inverse).clamp(1 / to.ratio, to.ratio)
            self._drawn = ratio, ((self.moments.mean.detach() - to.mean) * inverse).clamp(-to.drift, to.drift)
        return self._drawn

    def triple(self) -> Triple:
        """Center, scale and bias."""
        bias = self._applied()[1]
        return self.moments.mean if self.centered else 0.0, self._factor()[1], 0.0 if bias is None else bias

    def at_once(self, bend: Bending | None = None) -> AtOnce | None:
        """The output, bent, without asking for the moments, if the backend can."""
        return self.moments.at_once(self.weight, self.bias, self.eps, centered=self.centered, bend=bend, towards=self.towards)

    def is_closed(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it is made of moments of x and of these tensors themselves, so that `pull` is the whole derivative."""
        own = (self.weight, self.bias, *self.moments.sources())
        return all(isinstance(t, Pooled) or t is None or any(t is given for given in tensors) for t in own)

    def pull(self, scale: Tensor, total: Tensor, product: Tensor, to: Pull) -> None:
        """Send the gradients that follow from the sums of dy and of dy * (x - center) to where they come from."""
        factors = self._factor()[0], scale
        weight, bias = self._applied()
        found = to.by.unstandardize(total, product, factors, self.moments, weight, bias, centered=self.centered)
        self.moments.pull(found.mean, found.var, to)
        d_weight, d_bias = found.weight, found.bias
        if self.towards is not None and d_weight is not None and d_bias is not None:
            ratio, drift = self._draw(self.towards)
            d_weight = None if self.weight is None else fit(d_weight * ratio + d_bias * drift, self.weight)
            d_bias = None if self.bias is None else fit(d_bias, self.bias)
        for tensor, grad in ((self.weight, d_weight), (self.bias, d_bias)):
            if tensor is not None and grad is not None:
                to.tensors.append((tensor, grad))


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

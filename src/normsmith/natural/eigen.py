"""EigenNet: whitened inputs, and whitened gradients at the outputs, so that a gradient step on V is a step of K-FAC.

Formula: y = R (V U (x - c) + d), U = A^(-1/2) of the covariance A of the inputs, c their mean, R = G^(-1/2) of the second moments
G = E[dh dhᵀ] of the gradients dh at y. V and d are trained; a refresh keeps the function. A gradient step is
W <- W - lr G⁻¹ (dW - db cᵀ) A⁻¹, and b moves as if it were a column of W whose input is 1: the step of K-FAC for the layer, with its bias.
In a convolution A is the mean over positions of what single positions hold, G sums over positions; samples count alone.

`eps` counts in mean eigenvalues, on both sides, and is large by default: G is of few samples and changes fast, and with the 1e-3 that does
for inputs alone training blew up in our runs; `clip` bounds the condition number of R. With `scale="mean"` R is that of G over its mean
eigenvalue: only the shape of G counts, not its size, which vanishes as training succeeds, and which loss scaling changes.
`scale="fisher"` takes G as it is, for a loss that is the mean over samples: then it is the step of K-FAC in size too. G is of the
gradients of the loss that is trained on, with the labels of the data: the empirical Fisher.

With `energy` or `rank` only the directions with the largest eigenvalues are kept of the inputs, which loses what is left out and nothing
else; the step is then that of K-FAC within them. Gradients are not truncated: a direction of the outputs in which little gradient comes
back is one in which the loss is flat now, not one that the network can do without, and a narrower R would set it to zero for good.

Differs from the source, of which one formula was at hand: after Luo, 2017, reconstructed. The bias stands inside R here, outside there.
The abstract's "removing eigenvectors with small eigenvalues" does not say of which side; `gwnn_post` removes outputs, by their variance.
Cost: the products R V U, independent of the batch; while it looks, a covariance of inputs, and one of gradients in the backward.
Fails when: G is of few samples or of a loss near zero; the batch size of K-FAC's literature is hundreds.
Reference: Luo, "EigenNet: Towards Fast and Structural Learning of Deep Neural Networks", IJCAI 2017; Martens and Grosse, "Optimizing Neural
Networks with Kronecker-factored Approximate Curvature", ICML 2015.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from normsmith.errors import OptionError
from normsmith.natural.geometry import Plain
from normsmith.natural.whitened import WhitenedLayer, Whitening
from normsmith.natural.whitener import Basis, whitener


@dataclass(frozen=True)
class Eigen(Whitening):
    """How inputs and gradients are whitened; a truncated basis is that of the eigenvectors, in which a step of SGD is the same."""

    eps: float = 0.3
    basis: Basis = "zca"
    clip: float = 1e3
    scale: Literal["mean", "fisher"] = "mean"

    def __post_init__(self) -> None:
        if self.energy != 1 or self.rank is not None:
            object.__setattr__(self, "basis", "pca")
        super().__post_init__()
        if not self.clip >= 1:
            raise OptionError(
                f"eigennet expects clip, the largest condition number of R, of 1 or more: got {self.clip!r}; try 1e3"
            )
        if self.scale not in {"mean", "fisher"}:
            raise OptionError(f"eigennet expects scale as 'mean' or 'fisher': got {self.scale!r}")


class EigenLayer(WhitenedLayer):
    """A layer with whitened inputs and whitened gradients."""

    method = "eigennet"
    listens = True
    options: Eigen

    def __init__(self, layer: Plain, options: Eigen, *, normed: bool = False) -> None:
        super().__init__(layer, options, normed=normed)
        assert self.whitening is not None
        groups = self.geometry.groups
        outputs = len(layer.weight) // groups
        self.restoring = torch.eye(outputs, device=self.whitening.device, dtype=self.whitening.dtype).repeat(groups, 1, 1)

    def _look(self, x: Tensor, y: Tensor) -> Tensor:
        return self.listen(x, super()._look(x, y))

    def _restoring(self) -> Tensor:
        """R of the gradients that came back; the identity where none did."""
        found = self.seen.probe
        assert found is not None
        if self.options.scale == "mean":
            mean = found.diagonal(dim1=-2, dim2=-1).mean()
            found = torch.where(mean > 0, found / mean, found)
        return whitener(found, self.options.eps, basis="zca", clip=self.options.clip).matrix

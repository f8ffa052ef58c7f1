"""Post-GWNN: the outputs of a layer are whitened, truncated and batch-normalized: the next layer reads fewer, uncorrelated inputs.

Formula: h = P V x, P the rows of L^(-1/2) Dᵀ with the largest eigenvalues of the covariance D L Dᵀ of V x, a share `energy` of their sum
(or `rank` rows); then batch norm, in which constants vanish. V is trained, P a constant. The width of the layer is the number of rows.
A refresh cannot keep the function, as an activation works on every coordinate by itself: P is rotated to give, in mean square, what is
nearest to what the old one gave, and the running statistics become those of its outputs.
With `covariance="gaussian"` a refresh needs no data where the layer before is one too, with a ReLU between: its normed outputs being taken
as independent Gaussians, the moments of relu(alpha phi + beta) are closed forms (`relu_gaussian_moments`), and positions of a convolution
count as independent.

Differs from the source: after Luo, 2017, reconstructed. The rule for the rank and the alignment are ours.
Cost: the product P V, independent of the batch; while it looks, the layer once more, and a covariance of its outputs.
Fails when: a refresh comes late: the truth has turned, and so does P. What reads the layer elsewhere than through the next layer.
Reference: Luo, "Learning Deep Architectures via Generalized Whitened Neural Networks", ICML 2017.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from normsmith.errors import OptionError
from normsmith.methods.batch import BatchNorm
from normsmith.natural.geometry import Plain
from normsmith.natural.layer import NaturalLayer
from normsmith.natural.spread import Spread
from normsmith.natural.watch import When
from normsmith.natural.whitened import Whitening
from normsmith.natural.whitener import aligned, rank_for, whitener


def relu_gaussian_moments(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of relu(alpha phi + beta), phi a standard Gaussian; the variance is no difference of large numbers."""
    size = alpha.abs().double()
    t = (beta.double() / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(-1e3, 1e3)  # in units of alpha
    above, below = torch.special.ndtr(t), torch.special.ndtr(-t)
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    mean = t * above + density
    square = (1 + t.square()) * above + t * density
    # For t > 0 relu(z) is z and what is cut off, whose moments are small; the variance follows from them.
    cut, cut_square = density - t * below, (1 + t.square()) * below - t * density
    var = torch.where(t > 0, 1 - cut_square - 2 * t * cut - cut.square(), square - mean.square())
    constant = size == 0
    mean = torch.where(constant, beta.double().clamp_min(0), mean * size)
    return mean.to(alpha.dtype), torch.where(constant, 0, var.clamp_min(0) * size.square()).to(alpha.dtype)


@dataclass(frozen=True)
class PostWhitening(Whitening):
    """How outputs are whitened."""

    energy: float = 0.95
    covariance: Literal["data", "gaussian"] = "data"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis != "pca":
            raise OptionError(f"gwnn_post expects basis='pca': got {self.basis!r}; leave it out")
        if self.covariance not in {"data", "gaussian"}:
            raise OptionError(f"gwnn_post expects covariance as 'data' or 'gaussian': got {self.covariance!r}")


class PostWhitenedLayer(NaturalLayer):
    """A layer that writes whitened outputs; before its first refresh it writes those of the plain layer, and has no norm."""

    method = "gwnn_post"

    def __init__(self, layer: Plain, options: PostWhitening) -> None:
        super().__init__(layer)
        self.options = options
        # Whose normed outputs are, behind a ReLU, the input here. A list, as it is no submodule.
        self.before: list[PostWhitenedLayer] = []

    def observe(self, x: Tensor) -> None:
        """Take down the outputs before P."""
        with torch.no_grad():
            h = self.geometry(x, self.whitened_weight, None)
        self.seen.add(self.geometry.rows(h), 1)

    def _observed(self) -> int:
        return self.whitened_weight.shape[0]

    def due(self) -> When:
        """As everywhere; there is nothing to look at where the moments follow from the parameters."""
        return "never" if self._needs_no_data() else super().due()

    def _needs_no_data(self) -> bool:
        return self.restoring is not None and self.options.covariance == "gaussian" and bool(self.before)

    def gather(self) -> bool:
        """As everywhere; nothing needs to be seen where the moments follow from the parameters."""
        if not self._needs_no_data():
            return super().gather()
        self.seen.spread = self._by_parameters()
        return bool(self.seen.spread.scatter.isfinite().all())

    def _by_parameters(self) -> Spread:
        norm = self.before[0].norm
        assert norm is not None
        assert norm.weight is not None
        assert norm.bias is not None
        mean, var = relu_gaussian_moments(norm.weight.detach().double(), norm.bias.detach().double())
        blocks = self.geometry.blocks(self.whitened_weight.detach())[0].double()
        scatter = torch.einsum("oik,i,pik->op", blocks, var, blocks)
        return Spread(var.new_ones(()), torch.einsum("oik,i->o", blocks, mean), scatter.unsqueeze(0))

    @torch.no_grad()
    def refresh(self) -> None:
        """Whiten what was seen, in axes as near to the old ones as can be."""
        spread = self.seen.spread
        assert spread is not None
        covariance = spread.covariance()
        found = whitener(covariance, self.options.eps)
        if self.restoring is None:
            rank = self.options.rank or rank_for(found.eigenvalues, self.options.energy)
            matrix = found.matrix[:, :rank]
            wide = torch.promote_types(self.whitened_weight.dtype, torch.float32)
            self.restoring = matrix.to(wide, copy=True)
            self._add_norm(len(matrix[0]))
        else:
            matrix = aligned(found.matrix[:, : self.restoring.shape[1]], covariance, self.restoring.double())
            self.restoring.copy_(matrix)
        assert self.norm is not None
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(matrix[0] @ spread.mean)
        self.norm.running_var.copy_((matrix @ covariance @ matrix.mT)[0].diagonal())

    def _add_norm(self, width: int) -> None:
        weight = self.whitened_weight
        self.norm = BatchNorm(width, device=weight.device, dtype=weight.dtype)
        self.norm.requires_grad_(weight.requires_grad)
        self.norm.training = self.training

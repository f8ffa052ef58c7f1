"""Cholesky whitening: every channel loses what the channels before it in its group explain, and is brought to variance 1.

Formula: y = L^(-1) (x - mean), times weight_c plus bias_c, with L lower triangular, L Lᵀ = Sigma = cov + eps I over (N, *spatial), per
group of channels. In evaluation mean and covariance are the running ones, the covariance unbiased as torch keeps a variance;
`running="matrix"` averages the matrices themselves.

Differs from batch norm: takes the covariances out as well; the first channel of a group is batch norm, the last is what is left of it. It
depends on the order of the channels, and like batch norm not on the scale of any. L^(-1) comes from triangular solves, forward and
backward, and is then applied as a matrix. In float32 no less than the rounding error of the trace is added on the diagonal, without which
the factorization of a singular covariance fails.
Cost: 2 passes over x forward, 2 over x and dy backward; 5 products of g numbers for each element. The cheapest matrix of the family.
Fails when: the batch has fewer vectors than a group has channels: the later channels are then explained in full, and only eps is left.
Reference: Siarohin, Sangineto and Sebe, "Whitening and Coloring Batch Transform for GANs", ICLR 2019.
"""

from functools import partial

from torch import Tensor

from normsmith.covariance import Covariance
from normsmith.methods._matrices import cholesky
from normsmith.methods._whitening import WhiteningNormalizer, finished
from normsmith.whitening import Mix, Triple


def mix(cells: None, batch: Covariance, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Triple:
    return finished(batch.mean, cholesky(batch.cov, eps), weight, bias)


class CholeskyWhitening(WhiteningNormalizer):
    """Cholesky whitening over (N, C, *spatial), for any number of spatial dimensions; `normsmith show cholesky_whitening`."""

    def mix(self) -> Mix:
        return partial(mix, eps=self.eps)

"""ZCA whitening: the channels of each group are brought to covariance I by the matrix that moves them least.

Formula: y = Sigma^(-1/2) (x - mean), times weight_c plus bias_c, with Sigma = cov + eps I over (N, *spatial), per group of channels. The
covariance of the output is lambda / (lambda + eps) in each of its directions. In evaluation mean and covariance are the running ones, the
covariance unbiased as torch keeps a variance; `running="matrix"` averages the matrices themselves.

Differs from batch norm: takes the covariances of channels out as well, so that a rotation of the input within a group is one of the
output; a group of 1 is batch norm. `group_size` is the largest that divides the channels and is at most 64. Differs from the lecture: that
has neither the minus of X - mean nor that of the exponent. Differs from the code of decorrelated batch norm: there all groups share one
covariance; weight starts at random. The gradient is exact where eigenvalues meet (it needs sums of their roots, not differences). In
float32 no less than the rounding error of the trace is added on the diagonal.
Cost: 2 passes over x forward, 2 over x and dy backward; 5 products of g numbers for each element, and an eigendecomposition per step.
Fails when: the batch has fewer vectors than a group has channels: what lies outside them is only eps; `condition()` tells.
Reference: Huang, Yang, Lang and Deng, "Decorrelated Batch Normalization", CVPR 2018.
"""

from functools import partial

from torch import Tensor

from normsmith.covariance import Covariance
from normsmith.methods._matrices import zca
from normsmith.methods._whitening import WhiteningNormalizer, finished
from normsmith.whitening import Mix, Triple


def mix(cells: None, batch: Covariance, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Triple:
    return finished(batch.mean, zca(batch.cov, eps, batch.kept), weight, bias)


class ZCAWhitening(WhiteningNormalizer):
    """ZCA whitening over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show zca_whitening`."""

    def mix(self) -> Mix:
        return partial(mix, eps=self.eps)

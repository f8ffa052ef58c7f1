"""PCA whitening: each group of channels is turned into its principal axes, the strongest first, and every axis brought to variance 1.

Formula: y = Lambda^(-1/2) Dᵀ (x - mean), times weight_c plus bias_c, with Sigma = cov + eps I = D Lambda Dᵀ over (N, *spatial), per group
of channels. In evaluation mean and covariance are the running ones, the covariance unbiased as torch keeps a variance.

Differs from batch norm: an output channel is no input channel but an axis, so a network that was trained with another norm cannot take
this one over; the sign of an axis is free, here its largest element is positive. Differs from the lecture: that prints Lambda^(1/2) D X.
There is no average of matrices, whose signs flip between batches. The gradient of an axis has 1 / (difference of eigenvalues) in it: it is
damped where that is less than values of this precision tell apart, so it stays finite, but it is large before that.
Cost: 2 passes over x forward, 2 over x and dy backward; 5 products of g numbers for each element, and an eigendecomposition per step.
Fails when: two eigenvalues are close: axes trade places from batch to batch, and what follows cannot learn. For networks take
`zca_whitening`.
Reference: Huang, Yang, Lang and Deng, "Decorrelated Batch Normalization", CVPR 2018, which shows that failure.
"""

from functools import partial
from typing import ClassVar

from torch import Tensor

from normsmith.covariance import Covariance
from normsmith.methods._matrices import pca
from normsmith.methods._whitening import WhiteningNormalizer, finished
from normsmith.whitening import Mix, Triple


def mix(cells: None, batch: Covariance, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Triple:
    return finished(batch.mean, pca(batch.cov, eps, batch.kept), weight, bias)


class PCAWhitening(WhiteningNormalizer):
    """PCA whitening over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show pca_whitening`."""

    turns: ClassVar[bool] = True

    def mix(self) -> Mix:
        return partial(mix, eps=self.eps)

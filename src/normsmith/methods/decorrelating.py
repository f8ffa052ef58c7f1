"""Decorrelating: each group of channels is turned into its principal axes, the strongest first, and their variances stay as they are.

Formula: y = Dᵀ (x - mean), times weight_c plus bias_c, with cov = D Lambda Dᵀ over (N, *spatial), per group of channels: the covariance of
the output is Lambda, diagonal. In evaluation mean and covariance are the running ones.

Differs from batch norm: divides by nothing (so there is no eps), turns instead. Differs from the lecture: that prints D X, without the
transposition and without the mean. The sign of an axis is free, here its largest element is positive. As in `pca_whitening` an output
channel is an axis, there is no average of matrices, and the gradient is damped where two eigenvalues meet.
Cost: 2 passes over x forward, 2 over x and dy backward; 5 products of g numbers for each element, and an eigendecomposition per step.
Fails when: two eigenvalues are close: axes trade places from batch to batch.
Reference: Faye, Azzag and Lebbah, "Unsupervised Adaptive Normalization", IJCNN 2024, in its survey of normalizers.
"""

from functools import partial
from typing import Any, ClassVar, Unpack

from torch import Tensor

from normsmith.covariance import Covariance
from normsmith.methods._matrices import pca
from normsmith.methods._options import WithoutEps, refuse_eps
from normsmith.methods._whitening import WhiteningNormalizer, finished
from normsmith.whitening import Mix, Triple


def mix(cells: None, batch: Covariance, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Triple:
    return finished(batch.mean, pca(batch.cov, eps, batch.kept, scaled=False), weight, bias)


class Decorrelating(WhiteningNormalizer):
    """Turns the channels of a group into principal axes; the card is `normsmith show decorrelating`."""

    turns: ClassVar[bool] = True

    def __init__(self, num_features: int, *, group_size: int | None = 64, **running: Unpack[WithoutEps]) -> None:
        refuse_eps(type(self).__name__, running)
        super().__init__(num_features, group_size=group_size, **running)

    def mix(self) -> Mix:
        return partial(mix, eps=self.eps)  # which moves no axis

    def options(self) -> dict[str, Any]:
        return {key: value for key, value in super().options().items() if key not in {"eps", "running"}}

"""Layer norm: every sample is brought to mean 0 and variance 1 over all its channels and positions.

Formula: y = (x - mean_n) / sqrt(var_n + eps) * weight + bias, mean and biased variance over (C, *spatial). Two affine conventions:
`LayerNorm(64)` takes (N, 64, *spatial) and has one weight and bias per channel, so that it works at any spatial size;
`LayerNorm((64, 7, 7))` or `LayerNorm((64,))` is torch's form: statistics over these trailing dimensions of an input of any rank, one
weight and bias per element. Transformer tokens (N, T, 64) are of this form.

Differs from batch norm: statistics per sample, the same in training and evaluation, independent of the batch.
The per-channel form equals group norm with one group. "Group norm with one group is layer norm" holds for it only: the
paper's gain and bias are per element. A lecture prints neither eps nor affine map.
Cost: 2 passes over x forward, 2 over x and dy backward. The trailing form is torch's operator.
Fails when: a sample is a single number (a warning: the output is the bias), or channels have unlike scales that matter.
Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.methods._base import Normalizer
from normsmith.methods._torch import group_norm
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(cells.pool(1), weight, bias, eps)


class LayerNorm(Normalizer):
    """Layer norm over (N, C, *spatial), or over trailing dimensions; the card is `normsmith show layer`."""

    takes_shape = True
    eps: float

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, bias=bias, act=act, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if isinstance(self.num_features, tuple):
            self.warn_if_single(math.prod(self.num_features), "sample", "normalize over more dimensions")
            return self.activated(F.layer_norm(x, self.num_features, self.weight, self.bias, self.eps))
        self.warn_if_single(math.prod(x.shape[1:]), "sample", "normalize inputs of more channels or positions")
        if mask is None:
            y = group_norm(x, 1, self.weight, self.bias, self.eps, activated=self.bend is not None)
            if y is not None:
                return self.activated(y)
        return normalize(x, partial(mix, eps=self.eps), self.weight, self.bias, sees="cells", mask=mask, act=self.bend).y

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if self.bend is not None:
            return None
        if isinstance(self.num_features, tuple):
            has_bias = self.bias is not None or not self.affine
            return nn.LayerNorm(self.num_features, eps=self.eps, elementwise_affine=self.affine, bias=has_bias)
        if self.affine and self.bias is None:
            return None
        return nn.GroupNorm(1, self.num_features, eps=self.eps, affine=self.affine)

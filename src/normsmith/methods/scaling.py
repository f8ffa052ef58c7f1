"""Scaling: every channel is divided by its standard deviation over the batch, and keeps its mean, divided with it.

Formula: y = x / sqrt(var_c + eps) * weight_c + bias_c, with the biased variance, about the mean, over (N, *spatial). In evaluation the
running variance takes its place; it is unbiased, as torch keeps it.

Differs from batch norm: subtracts nothing, so the mean of the output is mean / deviation, not 0. Differs from RMS norm: that divides by
the root mean square, about 0, of a sample. The running mean is kept for the common contract (recalibration, reports); the output does not
depend on it.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 1.
Fails when: as batch norm on small batches; means that are large against the deviation stay so.
Reference: Faye, Azzag and Lebbah, "Unsupervised Adaptive Normalization", IJCNN 2024, in its survey of normalizers.
"""

from functools import partial

import torch
from torch import Tensor

from normsmith.affine import Triple
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize

CURE = "use a larger batch, drop the last incomplete one, normalize with RMSNorm"


def mix(
    cells: None, batch: Moments | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Triple:
    own = var if batch is None else batch.var
    assert own is not None
    inverse = torch.rsqrt(own + eps)
    return 0.0, inverse if weight is None else inverse * weight, 0.0 if bias is None else bias


class Scaling(RunningNormalizer):
    """Divides each channel by its standard deviation; the card is `normsmith show scaling`."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        options, affine = partial(mix, eps=self.eps), (self.weight, self.bias)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return normalize(x, options, self.constants()[1], *affine, sees="nothing", mask=mask, act=self.bend).y
        result = normalize(x, options, None, *affine, sees="batch", mask=mask, world=self.world, act=self.bend)
        assert result.batch is not None
        self.update(result.batch)
        return result.y

"""Centering: the mean of every channel over the batch is taken away, and nothing else is done.

Formula: y = (x - mean_c) * weight_c + bias_c, the mean over (N, *spatial). In evaluation the running mean takes its place.

Differs from batch norm: divides by nothing (so there is no eps): the variance stays. Differs from the lecture: that prints X mu, having
lost the minus. The running variance is kept for the common contract (recalibration, reports); the output does not depend on it.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 1.
Fails when: as batch norm on small batches; activations that grow are not held back.
Reference: Faye, Azzag and Lebbah, "Unsupervised Adaptive Normalization", IJCNN 2024, in its survey of normalizers.
"""

from typing import Any, Unpack

import torch
from torch import Tensor

from normsmith.affine import Triple
from normsmith.methods._options import WithoutEps, refuse_eps
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize

CURE = "use a larger batch, drop the last incomplete one"


def mix(cells: None, batch: Moments | None, mean: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Triple:
    center = mean if batch is None else batch.mean
    assert center is not None
    return center, torch.ones_like(center) if weight is None else weight, 0.0 if bias is None else bias


class Centering(RunningNormalizer):
    """Takes the mean of each channel away; the card is `normsmith show centering`."""

    def __init__(self, num_features: int, **running: Unpack[WithoutEps]) -> None:
        refuse_eps(type(self).__name__, running)
        super().__init__(num_features, **running)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        affine = (self.weight, self.bias)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return normalize(x, mix, self.constants()[0], *affine, sees="nothing", mask=mask, act=self.bend).y
        result = normalize(x, mix, None, *affine, sees="batch", mask=mask, world=self.world, act=self.bend)
        assert result.batch is not None
        self.update(result.batch)
        return result.y

    def options(self) -> dict[str, Any]:
        return {key: value for key, value in super().options().items() if key != "eps"}

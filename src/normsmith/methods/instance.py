"""Instance norm: every channel of every sample is brought to mean 0 and variance 1 over its own positions.

Formula: y = (x - mean_nc) / sqrt(var_nc + eps) * weight_c + bias_c, mean and biased variance over (*spatial).
With `track_running_stats=True` (torch has it, off by default) evaluation uses averages over training of the samples' means and
unbiased variances.

Differs from batch norm: statistics per sample, so the contrast of an image is removed; the same in training and evaluation, and
independent of the batch. Differs from torch: `momentum=None` is the plain average here, torch then never updates; a lecture prints no eps.
Equals group norm with one channel per group, and batch norm for a batch of one.
Cost: 2 passes over x forward, 2 over x and dy backward.
Fails when: there is one position only (the output would be the bias whatever the input: an error), or when the contrast of a channel
is what tells the classes apart.
Reference: Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016.
"""

import math
from functools import partial
from typing import Unpack

from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.methods._options import Policies
from normsmith.methods._running import RunningNormalizer
from normsmith.methods._torch import group_norm, numbered_twin
from normsmith.moments import Moments
from normsmith.normalize import normalize

CURE = "normalize feature maps of more than one position, normalize with LayerNorm"


def mix(cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(cells, weight, bias, eps)


class InstanceNorm(RunningNormalizer):
    """Instance norm over (N, C, *spatial), at least one spatial dimension; the card is `normsmith show instance`."""

    def __init__(
        self, num_features: int, *, affine: bool = False, track_running_stats: bool = False, **running: Unpack[Policies]
    ) -> None:
        super().__init__(num_features, affine=affine, track_running_stats=track_running_stats, **running)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, math.prod(x.shape[2:]), "sample and channel", CURE):
            return self.by_running(x, mask)
        if mask is None and self.running_mean is None:
            # One channel per group: the same numbers as F.instance_norm, which is slower and loses the memory format.
            y = group_norm(x, self.num_features, self.weight, self.bias, self.eps, activated=self.bend is not None)
            if y is not None:
                return self.activated(y)
        result = normalize(x, partial(mix, eps=self.eps), self.weight, self.bias, sees="cells", mask=mask, act=self.bend)
        if self.running_mean is not None:
            assert result.cells is not None
            self._update_by(result.cells)
        return result.y

    def _update_by(self, cells: Moments) -> None:
        """Running statistics are averages over samples, all ranks' if synchronised; a sample without positions is none."""
        held = (cells.counts() > 0).to(cells.mean.dtype)
        samples = held.sum(0, keepdim=True)
        mean, var = ((t * held).sum(0, keepdim=True) / samples.clamp_min(1) for t in (cells.mean, cells.unbiased()))
        batch = Moments(mean, var, samples)
        self.update(self.world.average(batch) if self.world else batch, final=True)

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if spatial_dims == 0:  # torch reads (N, C) as one unbatched sample of N channels
            return None
        return numbered_twin(self, "InstanceNorm", spatial_dims)

"""Batch norm: every channel is brought to mean 0 and variance 1 over the samples and positions of the batch.

Formula: y = (x - mean_c) / sqrt(var_c + eps) * weight_c + bias_c, with the mean and the biased variance over (N, *spatial).
In evaluation the running mean and variance take their place, averaged over training with `momentum` as the weight of the newest
batch; the running variance is unbiased, as torch keeps it.

Differs from: nothing, this is the reference the other cards compare with. Lectures print sqrt(var - eps), or eps outside the root,
or no eps; the paper and torch have it inside, added. The paper averages over the training set after training; torch, and we, during it.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 1.
Fails when: the batch is small (the statistics are noise), its samples are not independent, the data of evaluation differ from those of
training, or one element per channel is all there is (an error). The output of a sample depends on its batch mates in training.
Reference: Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", ICML 2015.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn

from normsmith.affine import Standardized
from normsmith.kernels.choose import prefer_torch
from normsmith.methods._running import RunningNormalizer
from normsmith.methods._torch import numbered_twin
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.surroundings import is_recomputing, must_stay_plain

CURE = "use a larger batch, drop the last incomplete one, normalize with GroupNorm"


def mix(cells: None, batch: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(batch, weight, bias, eps)


class BatchNorm(RunningNormalizer):
    """Batch norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show batch`."""

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        elements = x.numel() // self.num_features
        if self.uses_running_stats or self.falls_back(x, elements, "channel", CURE):
            return self.by_running(x, mask)
        if (
            mask is None
            and self.process_group is None
            and elements > 1
            and prefer_torch("batch", x, activated=self.bend is not None)
        ):
            return self.activated(self._by_torch(x))
        options = partial(mix, eps=self.eps)
        result = normalize(x, options, self.weight, self.bias, sees="batch", mask=mask, world=self.world, act=self.bend)
        assert result.batch is not None
        self.update(result.batch)
        return result.y

    def _by_torch(self, x: Tensor) -> Tensor:
        """torch's own operator; what it keeps of the buffers must not have a version that the next forward changes."""
        buffers = self._buffers
        mean, var, tracked = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        if mean is None or not self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if var is not None and tracked is not None and self.momentum is not None and self.moves_as_torch(x):
            given = self.weight, self.bias, mean.data, var.data
            y = torch.batch_norm(x, *given, True, self.momentum, self.eps, cudnn.enabled)
            tracked.add_(1)
            return y
        mean, var = torch.zeros_like(mean), torch.zeros_like(mean)
        y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        count = x.numel() // self.num_features
        merged = self.accumulate > 1 or self.collected is not None
        if merged:
            var = var * ((count - 1) / count)  # biased, as batches are merged
        self.update(Moments(mean, var, count), final=not merged)
        return y

    def moves_as_torch(self, x: Tensor) -> bool:
        """Whether torch's operator may move mean and variance itself, at a forward in training that takes it."""
        return self._has_no_policy() and not (self.frozen or is_recomputing() or must_stay_plain((x,)))

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        return numbered_twin(self, "BatchNorm", spatial_dims)

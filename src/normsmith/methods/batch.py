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

from normsmith.affine import Standardized
from normsmith.kernels.choose import prefer_torch
from normsmith.methods._base import raise_single
from normsmith.methods._running import RunningNormalizer, mix_running, numbered_twin
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: None, batch: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(batch, weight, bias, eps)


class BatchNorm(RunningNormalizer):
    """Batch norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show batch`."""

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if self.uses_running_stats:
            if prefer_torch("batch_eval", x):
                return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            constants = (self.running_mean, self.running_var, self.weight, self.bias)
            return normalize(x, partial(mix_running, eps=self.eps), *constants, sees="nothing").y
        if self.training and x.numel() == self.num_features:
            raise_single(self, x, "channel", "use a larger batch, drop the last incomplete one, or normalize with GroupNorm")
        if prefer_torch("batch", x):
            return self._by_torch(x)
        result = normalize(x, partial(mix, eps=self.eps), self.weight, self.bias, sees="batch")
        if result.batch is not None:
            self.update(result.batch.mean, result.batch.unbiased())
        return result.y

    def _by_torch(self, x: Tensor) -> Tensor:
        """torch's own operator, which updates running buffers itself, except that it has no plain average."""
        if not (self.training and self.running_mean is not None and self.num_batches_tracked is not None):
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if self.momentum is None:
            mean, var = torch.zeros_like(self.running_mean), torch.ones_like(self.running_mean)
            y = F.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
            self.update(mean, var)
            return y
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps)
        self.num_batches_tracked.add_(1)
        return y

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module:
        return numbered_twin(self, "BatchNorm", spatial_dims)

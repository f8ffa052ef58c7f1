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

from functools import partial

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.kernels.choose import prefer_torch
from normsmith.methods._base import raise_single
from normsmith.methods._running import RunningNormalizer, mix_running, numbered_twin
from normsmith.methods._torch import group_norm
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(cells, weight, bias, eps)


class InstanceNorm(RunningNormalizer):
    """Instance norm over (N, C, *spatial), at least one spatial dimension; the card is `normsmith show instance`."""

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
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
            constants = (self.running_mean, self.running_var, self.weight, self.bias)
            return normalize(x, partial(mix_running, eps=self.eps), *constants, sees="nothing").y
        if x.numel() == x.shape[0] * x.shape[1] > 0:
            raise_single(self, x, "sample and channel", "normalize feature maps of more than one position, or use LayerNorm")
        if self.running_mean is None and prefer_torch("instance", x):
            # One channel per group: the same numbers as F.instance_norm, which is slower and loses the memory format.
            return group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        result = normalize(x, partial(mix, eps=self.eps), self.weight, self.bias, sees="cells")
        if result.cells is not None:
            self.update(result.cells.mean.mean(0), result.cells.unbiased().mean(0))
        return result.y

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if spatial_dims == 0:  # torch reads (N, C) as one unbatched sample of N channels
            return None
        return numbered_twin(self, "InstanceNorm", spatial_dims)

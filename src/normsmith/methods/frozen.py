"""Frozen batch norm: batch norm whose running statistics are constants, in training too.

Formula: y = (x - running_mean_c) / sqrt(running_var_c + eps) * weight_c + bias_c.

Differs from batch norm: no statistics of the batch, so nothing to update and nothing that depends on batch mates; it equals batch norm in
evaluation mode, and loads and saves the same state. Weight and bias stay parameters: freeze them with `requires_grad_(False)` if need
be; torchvision's FrozenBatchNorm2d has them as buffers, and no counter. `ns.BatchNorm(..., frozen=True)` is the same but for what it is
at birth; here `layer.frozen = False` thaws it, which its state remembers.
Cost: 1 pass over x forward, 1 over x and dy backward for the parameters and 1 over dy for x.
Fails when: the statistics are not of the data, say those of a new layer: 0 and 1. Load a checkpoint.
Reference: the fine-tuning of detectors with few images a batch, as in He, Gkioxari, Dollár and Girshick, "Mask R-CNN", ICCV 2017.
"""

from functools import partial
from typing import Unpack

from torch import Tensor

from normsmith.affine import Standardized
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: None, batch: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(batch, weight, bias, eps)


class FrozenNorm(RunningNormalizer):
    """Frozen batch norm over (N, C, *spatial), any number of spatial dimensions; the card is `normsmith show frozen`."""

    _born_frozen = True

    def __init__(  # type: ignore[misc]  # `frozen` is one of Running, with another default
        self, num_features: int, *, frozen: bool = True, **running: Unpack[Running]
    ) -> None:
        super().__init__(num_features, frozen=frozen, **running)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return self.by_running(x, mask)
        options = partial(mix, eps=self.eps)  # thawed: batch norm
        result = normalize(x, options, self.weight, self.bias, sees="batch", mask=mask, world=self.world, act=self.bend)
        assert result.batch is not None
        self.update(result.batch)
        return result.y

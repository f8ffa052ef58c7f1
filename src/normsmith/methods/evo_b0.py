"""EvoNorm-B0: an activation and a normalizer found by search, in one: x over the larger of two deviations, of batch and of sample.

Formula: y = x / max(sqrt(var_c + eps), v_c x + sqrt(var_nc + eps)) * weight_c + bias_c, with var_c over (N, *spatial) of the batch and
var_nc over (*spatial) of the sample, both biased. In evaluation the running variance takes the place of var_c; var_nc stays the sample's.

Differs from batch norm: nothing is subtracted, no activation after it, and the output is not an affine map of x. v starts at 1. The
running variance is unbiased, which is what timm keeps too (n / (n - 1) times the biased one). timm has eps=1e-3, here it is 1e-5 as in
batch norm; its form without activation does not normalize at all and is left out. The running mean is kept for the common contract
(recalibration, reports); the output does not depend on it.
Outside the frame: the denominator depends on x itself, so there is no affine map for a `mix` to give; the moments are measured as
everywhere, and the function is `curve`.
Cost: 2 passes over x forward, 2 over x and dy backward, which computes the function again.
Fails when: as batch norm, on small batches; x is far from zero; a single position makes var_nc 0, which is allowed.
Reference: Liu, Brock, Simonyan and Le, "Evolving Normalization-Activation Layers", NeurIPS 2020.
"""

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from normsmith.measure import measure
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.pointwise import pointwise

CURE = "use a larger batch, drop the last incomplete one, normalize with EvoNormS0"


def curve(x: Tensor, v: Tensor, of_batch: Tensor, of_sample: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    # The larger of the two by relu, whose backward is one operation; that of torch.maximum is several, and twice as slow in all.
    y = x / (of_batch + torch.relu(torch.addcmul(of_sample - of_batch, v, x)))
    return y if weight is None or bias is None else torch.addcmul(bias, y, weight)


class EvoNormB0(RunningNormalizer):
    """EvoNorm-B0 over (N, C, *spatial), its activation included; the card is `normsmith show evo_b0`."""

    v: nn.Parameter
    parameter_kinds: ClassVar[dict[str, str]] = {"v": "slopes"}
    activates = True

    def __init__(self, num_features: int, **running: Unpack[Running]) -> None:
        super().__init__(num_features, **running)
        self.v = nn.Parameter(torch.empty(num_features, device=running.get("device"), dtype=running.get("dtype")))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, v 1."""
        super().reset_parameters()
        if "v" in self._parameters:
            nn.init.ones_(self.v)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        by_running = self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE)
        x = x if mask is None else torch.where(mask, x, 0)
        cells, batch = measure(x, sees="cells" if by_running else "both", mask=mask, world=self.world)
        assert cells is not None
        var = self.constants()[1] if batch is None else batch.var
        deviations = ((var + self.eps).sqrt(), (cells.var + self.eps).sqrt())
        y = pointwise(x, curve, self.v, *deviations, self.weight, self.bias)
        if batch is not None:
            self.update(batch.detach())
        return y if mask is None else torch.where(mask, y, 0)

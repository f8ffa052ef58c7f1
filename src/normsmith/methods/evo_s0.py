"""EvoNorm-S0: an activation and a normalizer found by search, in one: swish over the standard deviation of the group.

Formula: y = x * sigmoid(v_c x) / sqrt(var_ng + eps) * weight_c + bias_c, the biased variance over a group's channels and positions.
`num_groups="auto"` is the rule of group norm: the largest divisor of num_features up to 32 that leaves two channels to a group.

Differs from batch norm: statistics per sample, the same in training and evaluation, independent of the batch; nothing is subtracted;
no activation after it. The variance is that of x, before the sigmoid. v starts at 1, as in timm, whose 32 groups and eps=1e-5 these are
too (the number of groups there must divide the channels); timm's form without activation does not normalize at all and is left out.
How it meets the frame: `mix` gives the affine map of x * sigmoid(v x), which one pass over x applies.
Cost: 2 passes over x forward, 2 over x and dy backward, which computes the sigmoid again.
Fails when: x is far from zero (nothing is centred), or a group is a single number (a warning: its variance is 0).
Reference: Liu, Brock, Simonyan and Le, "Evolving Normalization-Activation Layers", NeurIPS 2020.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from normsmith.measure import measure
from normsmith.methods._base import Normalizer
from normsmith.methods.group import choose_groups
from normsmith.moments import Moments
from normsmith.pointwise import pointwise


def mix(
    cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, num_groups: int, eps: float
) -> tuple[float, Tensor, Tensor | None]:
    scale = (cells.pool_groups(num_groups).var + eps).rsqrt()
    return 0.0, scale if weight is None else scale * weight, bias


def curve(x: Tensor, v: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    y = x * torch.sigmoid(v * x)
    return y * scale if bias is None else torch.addcmul(bias, y, scale)


class EvoNormS0(Normalizer):
    """EvoNorm-S0 over (N, C, *spatial), its activation included; the card is `normsmith show evo_s0`."""

    num_features: int
    eps: float
    v: nn.Parameter
    parameter_kinds: ClassVar[dict[str, str]] = {"v": "slopes"}
    activates = True

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | Literal["auto"] = "auto",
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.num_groups = choose_groups(num_features, num_groups, "EvoNormS0")
        self.v = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, v 1."""
        super().reset_parameters()
        if "v" in self._parameters:
            nn.init.ones_(self.v)

    def precision(self) -> torch.dtype:
        return self.v.dtype

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        elements = math.prod(x.shape[1:]) // self.num_groups
        self.warn_if_single(elements, "group", "use fewer groups", "its variance is zero and nothing is normalized")
        x = x if mask is None else torch.where(mask, x, 0)
        cells, _ = measure(x, sees="cells", mask=mask)
        assert cells is not None
        _, scale, bias = mix(cells, None, self.weight, self.bias, num_groups=self.num_groups, eps=self.eps)
        y = pointwise(x, curve, self.v, scale, bias)
        return y if mask is None else torch.where(mask, y, 0)

    def options(self) -> dict[str, Any]:
        return {"num_groups": self.num_groups, **super().options()}

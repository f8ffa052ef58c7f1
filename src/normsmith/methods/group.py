"""Group norm: the channels of a sample are cut into groups; each group is brought to mean 0 and variance 1.

Formula: y = (x - mean_ng) / sqrt(var_ng + eps) * weight_c + bias_c, mean and biased variance over a group's channels and positions.
`num_groups="auto"` is the largest divisor of num_features that is at most 32 and leaves at least two channels to a group (so that no
statistic is of one number at a single position), so for a prime number of channels 1, layer norm; 64 -> 32, 48 -> 24, 30 -> 15, 16 -> 8.

Differs from batch norm: statistics per sample and group, the same in training and evaluation, independent of the batch.
With num_groups=num_features it equals instance norm, with 1 layer norm (in its per-channel affine form). The affine map is per
channel, not per group. The paper has 32 groups; torch makes the user choose.
Cost: 2 passes over x forward, 2 over x and dy backward.
Fails when: a group is a single number (a warning: the output is the bias), or channels of unlike scale share a group.
Reference: Wu and He, "Group Normalization", ECCV 2018.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer
from normsmith.methods._torch import group_norm
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, num_groups: int, eps: float
) -> Standardized:
    return Standardized(cells.pool_groups(num_groups), weight, bias, eps)


def choose_groups(num_features: int, num_groups: int | Literal["auto"], name: str = "GroupNorm") -> int:
    """The number of groups, by the rule of the card for "auto"; an error if it does not divide the channels."""
    divisors = [g for g in range(1, num_features + 1) if num_features % g == 0]
    if num_groups == "auto":
        return max(g for g in divisors if g == 1 or (g <= 32 and num_features // g >= 2))
    if num_groups not in divisors:
        near = sorted(divisors, key=lambda g: abs(g - num_groups))[:2]
        raise OptionError(
            f"{name} expects a number of groups that divides the channels: got {num_features} channels, num_groups={num_groups!r}; "
            f"try num_groups={' or '.join(map(str, sorted(near)))}"
        )
    return num_groups


class GroupNorm(Normalizer):
    """Group norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show group`."""

    num_features: int
    eps: float

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | Literal["auto"] = "auto",
        eps: float = 1e-5,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, act=act, device=device, dtype=dtype)
        self.num_groups = choose_groups(num_features, num_groups)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        self.warn_if_single(math.prod(x.shape[1:]) // self.num_groups, "group", "use fewer groups")
        if mask is None:
            y = group_norm(x, self.num_groups, self.weight, self.bias, self.eps, activated=self.bend is not None)
            if y is not None:
                return self.activated(y)
        options = partial(mix, num_groups=self.num_groups, eps=self.eps)
        return normalize(x, options, self.weight, self.bias, sees="cells", mask=mask, act=self.bend).y

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if self.bend is not None:
            return None
        return nn.GroupNorm(self.num_groups, self.num_features, eps=self.eps, affine=self.affine)

    def options(self) -> dict[str, Any]:
        return {"num_groups": self.num_groups, **super().options()}

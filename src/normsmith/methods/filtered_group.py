"""Filtered group norm: group norm whose statistics leave out the outliers of a group.

Formula: first mean m0 and biased variance v0 over a group's channels and positions; its elements with
|x - m0| / sqrt(v0 + eps) < threshold give mean and biased variance; y = (x - mean) / sqrt(var + eps) * weight_c + bias_c for all
elements, the outliers too.

Differs from group norm: one activation far out no longer sets the scale of its group. A group of n elements has none beyond sqrt(n - 1)
deviations, so that up to n = threshold² + 1 (17 of the default) the two are the same. A threshold of 1 or less may select nothing: such
a group is not filtered, nor is one whose spread is that of rounding around its mean.
Differs from the lecture: it has a heading and a plot only, and there is no code of its authors; this applies their filter of batch norm.
"No alteration in inference" would mean plain group norm in evaluation, a function that was not trained: `filter_in_eval=False`.
`num_groups="auto"` as in group norm. The selection is a constant for the gradient.
Cost: 3 passes over x forward, 2 over x and dy backward.
Fails when: the outliers are the signal, or a group mixes channels of unlike scale, whose larger ones are then its outliers.
Reference: Horvath and Al-Afandi, "Filtered Batch Normalization", ICPR 2020; Wu and He, "Group Normalization", ECCV 2018.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.kernels import Bounds
from normsmith.measure import measure
from normsmith.methods._base import Normalizer
from normsmith.methods.filtered import EMPTY_UP_TO, check_threshold, select, unless_empty
from normsmith.methods.group import choose_groups
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, *, num_groups: int, eps: float
) -> Standardized:
    return Standardized(cells.pool_groups(num_groups), weight, bias, eps)


class FilteredGroupNorm(Normalizer):
    """Filtered group norm over (N, C, *spatial), any number of spatial dimensions; the card is `normsmith show filtered_group`."""

    num_features: int
    eps: float

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | Literal["auto"] = "auto",
        threshold: float = 4.0,
        filter_in_eval: bool = True,
        eps: float = 1e-5,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, act=act, device=device, dtype=dtype)
        self.num_groups = choose_groups(num_features, num_groups, type(self).__name__)
        check_threshold(type(self).__name__, threshold)
        self.threshold = threshold
        self.filter_in_eval = filter_in_eval

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        elements = math.prod(x.shape[1:]) // self.num_groups
        self.warn_if_single(elements, "group", "use fewer groups")
        filters = (self.training or self.filter_in_eval) and elements > self.threshold**2 + 1
        within = self._within(x, mask) if filters else None
        options = partial(mix, num_groups=self.num_groups, eps=self.eps)
        return normalize(x, options, self.weight, self.bias, sees="cells", within=within, mask=mask, act=self.bend).y

    def _within(self, x: Tensor, mask: Tensor | None) -> Bounds:
        """The bounds of each group, spread over its channels."""
        with torch.no_grad():
            cells, _ = measure(x, sees="cells", mask=mask)
            assert cells is not None
            bounds = select(cells.pool_groups(self.num_groups), self.threshold, self.eps)
            if self.threshold < EMPTY_UP_TO:
                selected, _ = measure(x, sees="cells", within=bounds, mask=mask)
                assert selected is not None
                bounds = unless_empty(bounds, selected.pool_groups(self.num_groups))
        return bounds

    def options(self) -> dict[str, Any]:
        own = {"num_groups": self.num_groups, "threshold": self.threshold, "filter_in_eval": self.filter_in_eval}
        return {**own, **super().options()}

"""Kalman group normalization: group norm whose statistics are drawn to a prediction made from those of the layer before it.

Formula: that of Kalman normalization for the mean and variance of every sample and group, (N, G) numbers: predict mean_p = E mean',
var_p = (E*E) var' + R, with E of shape (G, G') for all samples; observe the group's mean z and biased variance v; update
mean = mean_p + q (z - mean_p), var = var_p + q (v - var_p) + q (1 - q) (z - mean_p)²; y = (x - mean) / sqrt(var + eps) * weight + bias.
The first layer of a chain, or one that is not linked, is group norm. `previous=` and `ns.link` link as for `kalman`.

Differs from batch norm: independent of the batch, the same in training and evaluation, no running statistics. Differs from Kalman
normalization: no predictors that use weights, no full covariance. The paper says only that its idea extends to group norm, and no code of
the authors has it: what there is of this name elsewhere smooths group statistics over time, which is another method.
Cost: unlinked that of group norm; linked 2 passes over x forward and 4 backward.
Fails when: a group is a single number (a warning: the output is near the bias), or the layer before had not run.
Reference: after Wang, Peng, Luo, Wang and Lin, "Kalman Normalization", NeurIPS 2018.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.measure import measure
from normsmith.methods._base import Normalizer, one_of
from normsmith.methods._chain import Filter, Join, Slot, State, joined, joined_size
from normsmith.methods.group import choose_groups
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments | None,
    batch: None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    num_groups: int,
    eps: float,
) -> Standardized:
    """By the groups themselves, or by an updated mean and variance of each."""
    if cells is not None:
        return Standardized(cells.pool_groups(num_groups), weight, bias, eps)
    assert mean is not None
    assert var is not None
    return Standardized(Moments(mean, var, 1), weight, bias, eps)


class KalmanGroupNorm(Normalizer):
    """Kalman group normalization over (N, C, *spatial); the card is `normsmith show kalman_group`."""

    num_features: int
    eps: float
    slot: Slot
    _before: tuple[Slot, ...]

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int | Literal["auto"] = "auto",
        previous: "KalmanGroupNorm | Sequence[KalmanGroupNorm] | None" = None,
        join: Join = "add",
        gain: float = 0.9,
        max_ratio: float = 100.0,
        detach_state: bool = False,
        eps: float = 1e-5,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, act=act, device=device, dtype=dtype)
        name = type(self).__name__
        if not 0 < gain < 1:
            raise OptionError(
                f"{name} expects gain, the first weight of the observation, between 0 and 1: got {gain!r}; try 0.9"
            )
        if not max_ratio > 0:
            raise OptionError(f"{name} expects max_ratio above zero: got {max_ratio!r}; leave it at 100")
        self.num_groups = choose_groups(num_features, num_groups, name)
        self.first_gain, self.max_ratio, self.detach_state = gain, max_ratio, detach_state
        self.slot, self._before = Slot(), ()
        self.filter: Filter | None = None
        self.join: Join = join
        if previous is not None:
            self.link(previous, join=join)

    def link(self, previous: "KalmanGroupNorm | Sequence[KalmanGroupNorm]", *, join: Join = "add") -> None:
        """Put this layer behind others; a former link is forgotten."""
        layers = [previous] if isinstance(previous, KalmanGroupNorm) else list(previous)
        one_of(type(self).__name__, "join", join, ("add", "cat"))
        if not layers or any(not hasattr(p, "num_groups") or p is self for p in layers):
            raise OptionError(f"{type(self).__name__} expects other Kalman group layers before it: got {previous!r}")
        for layer in layers:
            layer.slot.wanted = True
        self._before, self.join = tuple(layer.slot for layer in layers), join
        inputs = joined_size([layer.num_groups for layer in layers], join)
        like = torch.zeros(()) if self.weight is None else self.weight
        self.filter = Filter(self.num_groups, inputs, self.first_gain, like)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        self.warn_if_single(math.prod(x.shape[1:]) // self.num_groups, "group", "use fewer groups")
        options = partial(mix, num_groups=self.num_groups, eps=self.eps)
        if not self._before and not self.slot.wanted:
            return normalize(x, options, None, None, self.weight, self.bias, sees="cells", mask=mask, act=self.bend).y
        cells, _ = measure(x, sees="cells", mask=mask)
        assert cells is not None
        each = self.num_features // self.num_groups
        groups = cells.map(lambda t: t.reshape(-1, self.num_groups, each)).pool(2).map(lambda t: t.squeeze(2))
        mean, var = groups.mean, groups.var
        if self.filter is not None:
            before = joined(self._before, self.join)
            prior = self.filter.predict(*(t.detach() if self.detach_state else t for t in before))
            mean, var = self.filter.correct(prior, (mean, var), self.max_ratio)
        self.slot.put(State(mean, var, self.weight, self.bias))
        spread = (t.repeat_interleave(each, 1) for t in (mean, var))
        return normalize(x, options, *spread, self.weight, self.bias, sees="nothing", mask=mask, act=self.bend).y

    def options(self) -> dict[str, Any]:
        return {
            "num_groups": self.num_groups,
            "gain": self.first_gain,
            "max_ratio": self.max_ratio,
            "detach_state": self.detach_state,
            **super().options(),
        }

"""Conditional norm: batch norm whose weight and bias, or whose statistics too, depend on a condition given with each sample.

Formula: y = (x - mean_c) / sqrt(var_c + eps) * weight_c(condition) + bias_c(condition), as batch norm but for the affine map.
`num_conditions=K`: the condition is an integer from 0 to K - 1 per sample, `weight` and `bias` are tables (K, C), 1 and 0 at the start.
`condition_features=D`: the condition is a vector of D numbers (FiLM), weight(c) = weight + weight_map c and bias(c) = bias + bias_map c,
with the maps (C, D) zero at the start: the layer starts as plain batch norm, and loads the state of one with `strict=False`.
Neither given means num_conditions=2.
`statistics="condition"` is domain-specific batch norm: mean and variance over the samples of the same condition, in training and in the
running statistics, (K, C), with a counter for each. A condition that is absent from a batch does not move its statistics; one of a single
element is normalized by its running ones and moves nothing, whatever `on_single` says (without running ones, by its own).

Differs from batch norm: the second argument. One condition is batch norm. Conditional batch norm of GANs starts weights near 1 with
noise, FiLM has no fixed 1: here both start as batch norm. An id outside its range is an error (on a GPU, torch's: reading it would
wait). Context normalization of the lecture, whose mean and deviation are learned tables, no statistics, is another method.
Cost: that of batch norm; statistics by condition the same, but synchronised 3 passes over x forward and 5 backward.
Fails when: as batch norm; by condition, when a batch has few samples of each.
Reference: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018; Chang et al., "Domain-Specific Batch
Normalization for Unsupervised Domain Adaptation", CVPR 2019; Dumoulin, Shlens and Kudlur, "A Learned Representation for Artistic
Style", ICLR 2017.
"""

from functools import partial
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.errors import InputError, OptionError
from normsmith.methods._base import one_of
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer, mix_running
from normsmith.methods._sets import by_sets, checked_ids, rows
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.surroundings import without_autocast

CURE = "use a larger batch, drop the last incomplete one"


def mix(cells: None, batch: Moments, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(batch, weight, bias, eps)


class ConditionalNorm(RunningNormalizer):
    """Batch norm under a condition, `layer(x, condition)`; the card is `normsmith show conditional`."""

    weight_map: nn.Parameter | None
    bias_map: nn.Parameter | None
    parameter_kinds: ClassVar[dict[str, str]] = {"weight_map": "maps", "bias_map": "maps"}
    condition_name = "condition"

    def __init__(
        self,
        num_features: int,
        *,
        num_conditions: int | None = None,
        condition_features: int | None = None,
        statistics: Literal["batch", "condition"] = "batch",
        **running: Unpack[Running],
    ) -> None:
        one_of("ConditionalNorm", "statistics", statistics, ("batch", "condition"))
        if num_conditions is None and condition_features is None:
            num_conditions = 2
        check_conditions(num_conditions, condition_features, statistics, running.get("affine", True))
        self.num_conditions, self.condition_features, self.statistics = num_conditions, condition_features, statistics
        super().__init__(num_features, **running)
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        if num_conditions is not None and self.affine:
            self.weight = nn.Parameter(torch.empty(num_conditions, num_features, **where))
            self.bias = nn.Parameter(torch.empty(num_conditions, num_features, **where))
        for key in ("weight_map", "bias_map"):
            mapped = condition_features is not None
            empty = nn.Parameter(torch.empty(num_features, condition_features or 0, **where)) if mapped else None
            self.register_parameter(key, empty)
        self.reset_parameters()

    def statistics_shape(self) -> tuple[int, ...]:
        by_condition = self.statistics == "condition" and self.num_conditions is not None
        return (self.num_conditions, self.num_features) if by_condition else (self.num_features,)  # type: ignore[return-value]

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, maps 0."""
        super().reset_parameters()
        for key in ("weight_map", "bias_map"):
            parameter = self._parameters.get(key)
            if parameter is not None:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        condition = self._checked(x, condition)
        weight, bias = self._affine_of(x, condition)
        if self.statistics == "condition":
            return by_sets(self, x, condition, self.num_conditions or 1, weight, bias, mask)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return normalize(
                x, partial(mix_running, eps=self.eps), *self.constants(), weight, bias, sees="nothing", mask=mask, act=self.bend
            ).y
        result = normalize(
            x, partial(mix, eps=self.eps), weight, bias, sees="batch", mask=mask, world=self.world, act=self.bend
        )
        assert result.batch is not None
        self.update(result.batch)
        return result.y

    def _affine_of(self, x: Tensor, condition: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of every sample, (N, C)."""
        if self.weight is None or self.bias is None:
            return None, None
        if self.weight_map is None or self.bias_map is None:
            return rows(self.weight, condition), rows(self.bias, condition)
        with without_autocast(x):
            condition = condition.to(self.weight.dtype)
            return F.linear(condition, self.weight_map, self.weight), F.linear(condition, self.bias_map, self.bias)

    def _checked(self, x: Tensor, condition: Tensor) -> Tensor:
        """The condition, or one sentence on what is wrong with it."""
        if self.num_conditions is not None:
            return checked_ids(self, x, condition, "num_conditions")
        if not condition.is_floating_point() or condition.shape != (x.shape[0], self.condition_features):
            raise InputError(
                f"ConditionalNorm expects the condition as floating-point numbers ({x.shape[0]}, {self.condition_features}): got "
                f"{condition.dtype} of shape {tuple(condition.shape)} for an input of shape {tuple(x.shape)}"
            )
        return condition

    def example_inputs(self, x: Tensor) -> dict[str, Tensor]:
        if self.num_conditions is not None:
            return {"condition": torch.arange(x.shape[0], device=x.device) % self.num_conditions}
        numbers = torch.arange(x.shape[0] * (self.condition_features or 0), device=x.device, dtype=x.dtype)
        return {"condition": numbers.view(x.shape[0], -1).sin()}

    def options(self) -> dict[str, Any]:
        own = {"num_conditions": self.num_conditions, "condition_features": self.condition_features}
        return {**{k: v for k, v in own.items() if v is not None}, "statistics": self.statistics, **super().options()}


def check_conditions(num_conditions: int | None, features: int | None, statistics: str, affine: bool) -> None:
    """Raise for options that cannot work together."""
    if num_conditions is not None and features is not None:
        raise OptionError(
            "ConditionalNorm expects either num_conditions, for integer ids, or condition_features, for vectors: got both; "
            "leave one out"
        )
    for option, value in (("num_conditions", num_conditions), ("condition_features", features)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"ConditionalNorm expects {option} as a positive integer: got {value!r}")
    if features is not None and statistics == "condition":
        raise OptionError(
            'ConditionalNorm expects num_conditions with statistics="condition", one set of statistics for each: got '
            "condition_features"
        )
    if not affine and statistics == "batch":
        raise OptionError(
            'ConditionalNorm expects something that depends on the condition: got affine=False with statistics="batch"; '
            "that is BatchNorm"
        )

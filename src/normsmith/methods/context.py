"""Context norm: every sample is normalized by the mean and deviation of the context, or domain, that it belongs to.

Formula: y = (x - mean_kc) / sqrt(var_kc + eps) * weight_c + bias_c, for a sample of context k, an integer given beside x.
`stats="batch"`: mean and variance over the samples of that context in the batch, with running statistics (K, C) and a counter for each
context. One that is absent from a batch does not move them; one of a single element is normalized by its running ones and moves nothing,
whatever `on_single` says (without running ones, by its own).
`stats="parameters"`: mean and the log of the deviation are learned tables (K, C), `context_mean` and `context_log_std`; no statistics of
data at all, so training and evaluation are the same, and the options of running statistics are refused. Both are zero at the start, where
y is x; `initial="xavier"` draws them as the authors do.
`unknown="average"`: a sample of context -1 is normalized by the average of the maps x -> y of all contexts, weighted by `prior` (equal
parts if none), from running statistics in training too, which it does not move. With the default, -1 is an error.

Differs from batch norm: one context with `stats="batch"` is batch norm. The same with several is domain-specific batch norm, `conditional`
with statistics="condition", but for weight and bias, which all contexts share here; with affine=False they are the same. The lecture, the
paper and the code have learned tables alone; the default here is the statistics, which need no tuning. The code divides by
exp(log_std) + 0.001: stats="parameters", eps_outside=True, eps=1e-3, initial="xavier", affine=False is the code. A figure of the
lecture takes this method and `uan` for one: that one learns a mixture and needs no context.
Cost: that of batch norm; synchronised 3 passes over x forward and 5 backward. Learned tables 1 forward, 2 over x and dy backward.
Fails when: the context is not known in evaluation, or a batch has few samples of each. An id outside its range is an error (on a GPU,
torch's: reading it would wait).
Reference: Faye, Azzag, Lebbah and Fangchen, "Context Normalization: A New Approach for the Stability and Improvement of Neural Network
Performance", EGC 2024; Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", CVPR 2019.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from normsmith.affine import Triple
from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.methods._sets import by_sets, checked_ids, rows, with_average
from normsmith.moments import Moments
from normsmith.normalize import normalize

_NOT_OF_TABLES = {"momentum", "track_running_stats", "frozen", "accumulate", "nonfinite", "on_single", "process_group"}


def mix(
    cells: Moments | None,
    batch: Moments | None,
    ids: Tensor,
    mean: Tensor,
    log_std: Tensor,
    shares: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    eps_outside: bool,
) -> Triple:
    scale = (log_std.exp() + eps).reciprocal() if eps_outside else ((2 * log_std).exp() + eps).rsqrt()
    if shares is not None:
        ids = torch.where(ids < 0, len(mean), ids)
        mean, scale = with_average(mean, scale, shares)
    own = rows(scale, ids)
    return rows(mean, ids), own if weight is None else own * weight, 0.0 if bias is None else bias


class ContextNorm(RunningNormalizer):
    """Normalization by context, `layer(x, context)`; the card is `normsmith show context`."""

    context_mean: nn.Parameter | None
    context_log_std: nn.Parameter | None
    shares: Tensor | None
    parameter_kinds: ClassVar[dict[str, str]] = {"context_mean": "contexts", "context_log_std": "contexts"}
    condition_name = "context"

    def __init__(
        self,
        num_features: int,
        *,
        num_contexts: int = 2,
        stats: Literal["batch", "parameters"] = "batch",
        unknown: Literal["error", "average"] = "error",
        prior: Sequence[float] | None = None,
        initial: Literal["identity", "xavier"] = "identity",
        eps_outside: bool = False,
        **running: Unpack[Running],
    ) -> None:
        one_of("ContextNorm", "stats", stats, ("batch", "parameters"))
        one_of("ContextNorm", "unknown", unknown, ("error", "average"))
        one_of("ContextNorm", "initial", initial, ("identity", "xavier"))
        if type(num_contexts) is not int or num_contexts < 1:
            raise OptionError(f"ContextNorm expects num_contexts as a positive integer: got {num_contexts!r}")
        if stats == "parameters":
            _refuse("parameters", {key: value for key, value in running.items() if key in _NOT_OF_TABLES})
            running = {**running, "track_running_stats": False}
        else:
            _refuse("batch", {"eps_outside": eps_outside, "initial": initial != "identity" and initial})
            if unknown == "average" and not running.get("track_running_stats", True):
                raise OptionError(
                    'ContextNorm expects running statistics with unknown="average": got track_running_stats=False; leave it out'
                )
        self.num_contexts, self.stats, self.unknown, self.initial = num_contexts, stats, unknown, initial
        self.prior, self.eps_outside = _checked_prior(prior, num_contexts, unknown), eps_outside
        super().__init__(num_features, **running)
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        for key in ("context_mean", "context_log_std"):
            empty = nn.Parameter(torch.empty(num_contexts, num_features, **where)) if stats == "parameters" else None
            self.register_parameter(key, empty)
        equal = torch.full((num_contexts,), 1 / num_contexts, **where)
        shares = equal if self.prior is None else torch.tensor([p / sum(self.prior) for p in self.prior], **where)
        self.register_buffer("shares", shares if unknown == "average" else None, persistent=False)
        self.reset_parameters()

    def statistics_shape(self) -> tuple[int, ...]:
        return self.num_contexts, self.num_features

    def precision(self) -> torch.dtype | None:
        """The type of the tables, if there are any."""
        table = self._parameters.get("context_mean")
        return super().precision() if table is None else table.dtype

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, tables 0 or as the authors draw them."""
        super().reset_parameters()
        for key in ("context_mean", "context_log_std"):
            table = self._parameters.get(key)
            if table is not None:
                (nn.init.zeros_ if self.initial == "identity" else nn.init.xavier_uniform_)(table)

    @torch.no_grad()
    def start_from(self, mean: Tensor, std: Tensor) -> None:
        """Have the tables of all contexts subtract this mean and, eps counted in, divide by this deviation."""
        assert self.context_mean is not None
        assert self.context_log_std is not None
        std = std.double() - self.eps if self.eps_outside else (std.double().square() - self.eps).clamp_min(0).sqrt()
        self.context_mean.copy_(mean)
        self.context_log_std.copy_(std.clamp_min(torch.finfo(torch.float32).tiny).log())

    @classmethod
    def without_meaning(cls, options: dict[str, Any]) -> set[str]:
        return _NOT_OF_TABLES if options.get("stats") == "parameters" else set()

    def forward(self, x: Tensor, context: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        ids = checked_ids(self, x, context, "num_contexts", lowest=0 if self.shares is None else -1)
        if self.context_mean is None or self.context_log_std is None:
            return by_sets(self, x, ids, self.num_contexts, self.weight, self.bias, mask, self.shares)
        shares = (
            None if self.shares is None else self.shares.clone()
        )  # DistributedDataParallel writes to buffers before a backward
        tensors = (ids, self.context_mean, self.context_log_std, shares, self.weight, self.bias)
        return normalize(
            x, partial(mix, eps=self.eps, eps_outside=self.eps_outside), *tensors, sees="nothing", mask=mask, act=self.bend
        ).y

    def example_inputs(self, x: Tensor) -> dict[str, Tensor]:
        return {"context": torch.arange(x.shape[0], device=x.device) % self.num_contexts}

    def options(self) -> dict[str, Any]:
        own: dict[str, Any] = {"num_contexts": self.num_contexts, "stats": self.stats, "unknown": self.unknown}
        if self.prior is not None:
            own["prior"] = self.prior
        if self.stats == "batch":
            return {**own, **super().options()}
        return {
            **own,
            "initial": self.initial,
            "eps_outside": self.eps_outside,
            "eps": self.eps,
            "affine": self.affine,
            **self.own_activation(),
        }


def _refuse(stats: str, given: dict[str, Any]) -> None:
    """Raise for options that mean nothing to this form."""
    for option, value in given.items():
        if value is not False or stats == "parameters":
            other = "batch" if stats == "parameters" else "parameters"
            raise OptionError(
                f'ContextNorm expects {option} with stats="{other}": got {option}={value!r} with stats="{stats}", where it means '
                "nothing; leave it out"
            )


def _checked_prior(prior: Sequence[float] | None, contexts: int, unknown: str) -> tuple[float, ...] | None:
    """How likely each context is, as it was given."""
    if prior is None:
        return None
    if unknown != "average":
        raise OptionError('ContextNorm expects prior with unknown="average": got it with unknown="error"; leave one out')
    shares = tuple(float(share) for share in prior)
    if len(shares) != contexts or min(shares) < 0 or not 0 < sum(shares) < math.inf:
        raise OptionError(
            f"ContextNorm expects prior as {contexts} numbers from zero, one for each context, not all zero: got {prior!r}"
        )
    return shares

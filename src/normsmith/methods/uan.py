"""Unsupervised adaptive normalization: each element is normalized by K learned clusters, in the shares in which it belongs to them.

Formula: per channel, shares r_k = softmax_k(log prior_k - log var_k / 2 - (x - mu_k)² / (2 var_k)) of a learned mixture; weighted moments
R_k = sum r_k, alpha_k = sum r_k x / R_k, delta_k² = sum r_k (x - alpha_k)² / R_k over the batch;
y = sum_k r_k / sqrt(prior_k) (x - alpha_k) / sqrt(delta_k² + eps) * weight + bias. Learned are mu and var, (K, C), and prior, (K,), the
same for all channels: var is the softplus of `raw_var` plus 0.001, prior the softmax of `raw_prior`, so that any step keeps them legal.
In evaluation mu and var take the place of alpha and delta² (`eval_stats="parameters"`), or running averages of alpha and delta² do
("running"), or the batch's own are used ("batch").

Differs from batch norm: K means and variances per channel, and gradients through the shares to the mixture. One component is batch norm in
training. With K well separated clusters the output has variance K, because of 1 / sqrt(prior).
Nothing in the loss ties mu and var to alpha and delta², so "parameters", the lecture's, may be far from what training did; measure both.
`match_weight` draws mu and var to them by so much at every batch (0.1 is a good value); ranks then need `ns.synchronize`, or their
parameters part.
Differs from the authors' code, which lacks the 1/sigma of the density, averages alpha over positions twice, takes (r x)² for delta²,
keeps an average that is never used and tests by the statistics of the test batch: this is the lecture's formula. Its eps is kept, 0.001.
Cost: 2 passes over x forward, 2 over x and dy backward, with K exponentials per element in each; nothing K times x is written.
Fails when: a component dies: its share is then zero, and so is its gradient. Where batches are small, as batch norm.
Reference: Faye et al., "Unsupervised Adaptive Normalization", IJCNN 2024; the same as UCB normalization in arXiv 2403.16798.
"""

from functools import partial
from typing import Any, ClassVar, Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Triple
from normsmith.errors import OptionError
from normsmith.kernels.mixtures import Density
from normsmith.methods._base import one_of
from normsmith.methods._components import ComponentNormalizer, check_components
from normsmith.methods._options import WithoutEps
from normsmith.methods.batch import CURE
from normsmith.mixture import normalize_mixture
from normsmith.moments import Moments
from normsmith.surroundings import is_recomputing

FLOOR = 1e-3  # of the variance of a component
LEAST = -60.0  # of the log of a prior: its share is zero long before


def density(mean: Tensor, raw_var: Tensor, raw_prior: Tensor, *rest: Tensor | None) -> Density:
    """The learned mixture of every channel."""
    return Density.of(_log_prior(raw_prior), mean, F.softplus(raw_var) + FLOOR)


def _log_prior(raw_prior: Tensor) -> Tensor:
    return F.log_softmax(raw_prior, 0).clamp_min(LEAST).view(-1, 1)


def mix(
    components: Moments | None,
    mean: Tensor,
    raw_var: Tensor,
    raw_prior: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Triple:
    if components is not None:
        center, var = components.mean, components.var
    elif running_mean is not None and running_var is not None:
        center, var = running_mean, running_var
    else:
        center, var = mean, F.softplus(raw_var) + FLOOR
    scale = (var + eps).rsqrt() * (-0.5 * _log_prior(raw_prior)).exp()
    return center, scale if weight is None else scale * weight, 0.0 if bias is None else bias


class UAN(ComponentNormalizer):
    """Unsupervised adaptive normalization over (N, C, *spatial); the card is `normsmith show uan`."""

    parameter_kinds: ClassVar[dict[str, str]] = {"mean": "components", "raw_var": "components", "raw_prior": "logits"}
    mean: nn.Parameter
    raw_var: nn.Parameter
    raw_prior: nn.Parameter

    def __init__(
        self,
        num_features: int,
        *,
        components: int = 3,
        eps: float = 1e-3,
        eval_stats: Literal["parameters", "running", "batch"] = "parameters",
        match_weight: float = 0.0,
        **running: Unpack[WithoutEps],
    ) -> None:
        name = type(self).__name__
        check_components(name, components)
        one_of(name, "eval_stats", eval_stats, ("parameters", "running", "batch"))
        if not 0 <= match_weight <= 1:
            raise OptionError(
                f"{name} expects match_weight, the pull of a batch at the mixture, from 0 to 1: got {match_weight!r}; try 0.1"
            )
        self.components = components
        super().__init__(num_features, eps=eps, **running)
        if eval_stats == "running" and not self.track_running_stats:
            raise OptionError(f'{name} expects running statistics for eval_stats="running": got track_running_stats=False')
        self.eval_stats, self.match_weight = eval_stats, match_weight
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        self.mean = nn.Parameter(torch.empty(components, num_features, **where))
        self.raw_var = nn.Parameter(torch.empty(components, num_features, **where))
        self.raw_prior = nn.Parameter(torch.empty(components, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0; mu from U(-1, 1), variances near 0.69, priors as in the authors' code."""
        super().reset_parameters()
        if "raw_prior" not in self._parameters:
            return  # the base class has made its own first
        nn.init.uniform_(self.mean, -1, 1)
        nn.init.uniform_(self.raw_var, 1e-3, 1e-2)
        nn.init.uniform_(self.raw_prior, 0.01, 0.99)
        with torch.no_grad():
            self.raw_prior.div_(self.raw_prior.sum())

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        measures = self.eval_stats == "batch" if self.rests else True
        if measures and self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            measures = False
        running = (None, None) if measures or self.eval_stats == "parameters" else self.constants()
        own = (self.mean, self.raw_var, self.raw_prior)
        if self.match_weight:
            own = tuple(t.clone() for t in own)  # type: ignore[assignment]  # they are moved before the backward
        options = partial(mix, eps=self.eps)
        world = self.world if measures else None
        arguments = (*own, *running, self.weight, self.bias)
        result = normalize_mixture(x, density, options, *arguments, measures=measures, mask=mask, world=world)
        if measures and not self.rests:
            assert result.batch is not None
            self.update(result.batch)
            self._match(result.batch)
        return self.activated(result.y)

    @torch.no_grad()
    def _match(self, batch: Moments) -> None:
        """Draw the mixture to the weighted moments of a batch, where a component has elements at all."""
        if not self.match_weight or is_recomputing():
            return
        held = (batch.counts() >= 1) & (batch.mean + batch.var).isfinite()
        var = F.softplus(self.raw_var) + FLOOR
        drawn = torch.lerp(var, batch.var.to(var), self.match_weight)
        positive = (drawn - FLOOR).clamp_min(1e-6)
        raw = positive + torch.log(-torch.expm1(-positive))  # the inverse of softplus
        mean = torch.lerp(self.mean, batch.mean.to(self.mean), self.match_weight)
        self.mean.copy_(torch.where(held, mean, self.mean))
        self.raw_var.copy_(torch.where(held, raw, self.raw_var))

    def options(self) -> dict[str, Any]:
        return {"eval_stats": self.eval_stats, "match_weight": self.match_weight, **super().options()}

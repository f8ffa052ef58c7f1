"""Kalman normalization: batch statistics of a layer are drawn to a prediction made from those of the layer before it.

Formula: behind another layer with the updated statistics (mean', var'), predict mean_p = E mean', var_p = (E*E) var' + R; observe the
mean z and biased variance v of the batch; update mean = mean_p + q (z - mean_p), var = var_p + q (v - var_p) + q (1 - q) (z - mean_p)²,
exactly those of a mixture of prediction and observation; then y = (x - mean) / sqrt(var + eps) * weight + bias as batch norm. E (the
identity, or rows that average), R > 0 (softplus, from 0.01) and q in (0, 1) (sigmoid, from `gain`) are learned. `covariance="full"`
carries a covariance, E Sigma E^T + R, as the lecture prints it, and normalizes by its diagonal.
The first layer of a chain, or one that is not linked, is batch norm. `previous=` links layers by hand, `ns.link(model, example)` by
running the model once; where branches meet, their means and variances are added (padded with zeros), or set side by side behind a
concatenation. In evaluation running averages of the updated statistics serve, without prediction, the variance unbiased as batch norm's.

Differs from batch norm: by the prediction, which steadies the statistics of small batches; start with gain=0.1 there. Where the mean
ratio of predicted to observed variance reaches `max_ratio`, the observation alone is used, as in the authors' code.
Differs from the authors' code: the lecture has a learned E and q (`predictor="matrix"`); their code has neither, but draws
relu(N(mean', var')) and pushes it through the weights between the layers, with q a constant (`predictor="sampled"`, with our learned
q). It feeds statistics from before the normalization, although the weights see what comes after it; so do we there.
`predictor="analytic"`, ours, does what theirs means: the normalized signal is N(bias, weight²), its ReLU has known moments, and weights
map means by their sums, variances by their squares.
Cost: unlinked that of batch norm; linked 2 passes over x forward and 4 backward, and the matrix E of C * C' numbers (full: C² statistics).
Fails when: batches differ in composition from layer to layer, or reentrant checkpointing cuts the chain: no gradient passes there.
Reference: Wang, Peng, Luo, Wang and Lin, "Kalman Normalization: Normalizing Internal Representations Across Network Layers", NeurIPS 2018.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.cells import cut
from normsmith.errors import OptionError
from normsmith.measure import measure
from normsmith.methods._base import one_of
from normsmith.methods._chain import Filter, Join, Slot, State, joined, joined_size
from normsmith.methods._options import Running
from normsmith.methods._predictors import analytic, check_between, sampled
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize

CURE = "use a larger batch, drop the last incomplete one, normalize with GroupNorm"


def mix(
    cells: None,
    batch: Moments | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Standardized:
    """By the batch itself, or by an updated mean and variance."""
    if batch is not None:
        return Standardized(batch, weight, bias, eps)
    assert mean is not None
    assert var is not None
    return Standardized(Moments(mean, var, 1), weight, bias, eps)


class KalmanNorm(RunningNormalizer):
    """Kalman normalization over (N, C, *spatial); the card is `normsmith show kalman`.

    `previous` is the layer before, or the layers whose outputs are added or, with join="cat", concatenated; `between` the convolution or
    linear layer on the way from there, for the predictors that use its weights. A link made after the optimizer needs its parameters added.
    """

    def __init__(
        self,
        num_features: int,
        *,
        previous: "KalmanNorm | Sequence[KalmanNorm] | None" = None,
        join: Join = "add",
        between: nn.Module | None = None,
        predictor: Literal["matrix", "sampled", "analytic"] = "matrix",
        covariance: Literal["diagonal", "full"] = "diagonal",
        gain: float = 0.9,
        max_ratio: float = 100.0,
        detach_state: bool = False,
        **running: Unpack[Running],
    ) -> None:
        super().__init__(num_features, **running)
        name = type(self).__name__
        one_of(name, "predictor", predictor, ("matrix", "sampled", "analytic"))
        one_of(name, "covariance", covariance, ("diagonal", "full"))
        if not 0 < gain < 1:
            raise OptionError(
                f"{name} expects gain, the first weight of the observation, between 0 and 1: got {gain!r}; try 0.9"
            )
        if not max_ratio > 0:
            raise OptionError(f"{name} expects max_ratio above zero: got {max_ratio!r}; leave it at 100")
        if covariance == "full" and predictor != "matrix":
            raise OptionError(f'{name} expects predictor="matrix" for a full covariance: got {predictor!r}')
        self.predictor, self.covariance, self.first_gain = predictor, covariance, gain
        self.max_ratio, self.detach_state = max_ratio, detach_state
        self.slot, self._before, self._between = Slot(), (), ()
        self.filter: Filter | None = None
        self.join: Join = join
        if previous is not None:
            self.link(previous, join=join, between=between)

    slot: Slot
    _before: tuple[Slot, ...]
    _between: tuple[nn.Module, ...]  # a tuple, so that the layer is not in two places of the model

    def link(
        self, previous: "KalmanNorm | Sequence[KalmanNorm]", *, join: Join = "add", between: nn.Module | None = None
    ) -> None:
        """Put this layer behind others; a former link is forgotten."""
        layers = [previous] if isinstance(previous, KalmanNorm) else list(previous)
        one_of(type(self).__name__, "join", join, ("add", "cat"))
        if not layers or any(getattr(p, "covariance", None) != self.covariance or p is self for p in layers):
            raise OptionError(
                f"{type(self).__name__} expects other Kalman layers of the same covariance before it: got {previous!r}"
            )
        sizes = [layer.num_features for layer in layers]
        if self.predictor != "matrix":
            check_between(between, joined_size(sizes, join), self.num_features, self.predictor)
        for layer in layers:
            layer.slot.wanted = True
        self._before, self.join = tuple(layer.slot for layer in layers), join
        self._between = () if between is None else (between,)
        like = self.weight if self.weight is not None else torch.zeros(()) if self.running_mean is None else self.running_mean
        inputs = joined_size(sizes, join)
        self.filter = Filter(self.num_features, inputs, self.first_gain, like, matrix=self.predictor == "matrix")

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return self.by_running(x, mask)
        options = partial(mix, eps=self.eps)
        if not self._before and not self.slot.wanted:
            result = normalize(
                x, options, None, None, self.weight, self.bias, sees="batch", mask=mask, world=self.world, act=self.bend
            )
            assert result.batch is not None
            self.update(result.batch)
            return result.y
        mean, var, count = self._observed(x, mask)
        if self.filter is not None:
            mean, var = self.filter.correct(self._predicted(), (mean, var), self.max_ratio)
        self.slot.put(State(mean, var, self.weight, self.bias))
        own = (mean, var) if self.covariance == "diagonal" else (mean.view(1, -1), var.diagonal().view(1, -1))
        self.update(Moments(*own, count).detach())
        return normalize(x, options, *own, self.weight, self.bias, sees="nothing", mask=mask, act=self.bend).y

    def _observed(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, int | Tensor]:
        """Mean, variance and count of the batch, of all ranks' if synchronised."""
        _, batch = measure(x, sees="batch", mask=mask, world=self.world)
        assert batch is not None
        if self.covariance == "diagonal":
            return batch.mean, batch.var, batch.count
        view = cut(x).to(batch.mean.dtype)
        centered = view - batch.mean.unsqueeze(2)
        if mask is not None:
            centered = torch.where(mask.reshape(*mask.shape[:2], -1), centered, 0)
        flat = centered.transpose(0, 1).flatten(1)
        products = flat @ flat.T
        if self.world is not None:
            products = self.world.gather(products.view(1, -1)).sum(0).view_as(products)
        divisor = batch.count.view(-1, 1).clamp_min(1) if isinstance(batch.count, Tensor) else batch.count
        return batch.mean.view(-1), products / divisor, batch.count

    def _predicted(self) -> tuple[Tensor, Tensor]:
        assert self.filter is not None
        if self.predictor == "matrix":
            mean, var = joined(self._before, self.join)
            return self.filter.predict(*((mean.detach(), var.detach()) if self.detach_state else (mean, var)))
        (between,) = self._between
        if self.predictor == "sampled":
            mean, var = sampled(*joined(self._before, self.join), between)
        else:
            mean, var = analytic([slot.get() for slot in self._before], self.join, between)
        return (mean.detach() if self.detach_state else mean), (var.detach() if self.detach_state else var) + self.filter.noise

    def options(self) -> dict[str, Any]:
        return {
            "predictor": self.predictor,
            "covariance": self.covariance,
            "gain": self.first_gain,
            "max_ratio": self.max_ratio,
            "detach_state": self.detach_state,
            **super().options(),
        }

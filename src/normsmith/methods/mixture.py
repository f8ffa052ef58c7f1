"""Mixture normalization: a Gaussian mixture is fitted to the batch, and each element normalized by the components it belongs to.

Formula: with the mixture's priors lambda_k and shares r_k = softmax_k(log lambda_k + log density_k), normalising constants included,
alpha_k = sum r_k x / sum r_k, delta_k² = sum r_k (x - alpha_k)² / sum r_k over all points of the batch;
y = sum_k r_k / sqrt(lambda_k) (x - alpha_k) / sqrt(delta_k² + eps) * weight + bias.
`mixture="joint"`: the channels of a position are one point of a mixture with diagonal covariances; "channel": every channel has its own.
In training, every `em_every` batches, `iterations` steps of EM (without gradient) start from the running averages of (lambda_k, alpha_k,
delta_k²); the very first from points far from each other (k-means++, with medians in the place of draws, so that it repeats itself). In
evaluation these averages are the mixture, alpha and delta²; the variance is unbiased as batch norm's. A component below a thousandth of
its even share, or 0.0001 of the points, is left out, and starts anew at the least likely of 1024 points. Fewer points than components are
taken as one. `temperature` above 1 makes shares more even; joint ones of many channels are nearly 0 or 1. `unit_variance` divides by
the root of the number of components.

Differs from batch norm: K means and variances. One component is batch norm; K equal ones give sqrt(K) times batch norm, and K well
separated ones each mean 0 and variance 1 / lambda_k, K over all: hence `unit_variance`.
Differs from the lecture, whose sums in alpha and delta² run over components where they must run over samples, and which is silent on
evaluation. The shares are constants for the gradient; `grad_through_posterior` follows them (for joint ones by plain torch operations).
Mode normalization is another method, and context normalization is told the shares.
Cost: 2 passes over x forward, 2 over x and dy backward, and 1 for each step of EM, with K exponentials per element in each; joint ones
have K per position, but 1 pass more for them. Nothing K times x is written.
Fails when: batches differ much and `em_every` is large; or clusters have few points each.
Reference: Kalayeh and Shah, "Training Faster by Separating Modes of Variation in Batch-normalized Models", TPAMI 2019 (arXiv 1806.02892).
"""

from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normsmith.affine import Triple
from normsmith.errors import OptionError
from normsmith.kernels.mixtures import Density
from normsmith.methods import _em
from normsmith.methods._base import one_of
from normsmith.methods._components import ComponentNormalizer, check_components
from normsmith.methods._em import Mixture
from normsmith.methods._options import Running
from normsmith.methods.batch import CURE
from normsmith.mixture import log_evidence, normalize_mixture, weigh
from normsmith.moments import Moments
from normsmith.surroundings import must_stay_plain, without_autocast


def density(prior: Tensor, mean: Tensor, var: Tensor, *rest: Tensor | None, joint: bool, temperature: float) -> Density:
    """The fitted mixture."""
    return Mixture(prior, mean, var).density(joint, temperature)


def mix(
    components: Moments | None,
    prior: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    unit_variance: bool,
) -> Triple:
    if components is not None:
        mean, var = components.mean, components.var
    least = _em.least_share(prior.shape[0])
    alive = prior >= least
    scale = (var + eps).rsqrt() * torch.where(alive, prior.clamp_min(least).rsqrt(), 0)
    if unit_variance:
        scale = scale * alive.sum(0, keepdim=True).to(scale).rsqrt()
    return mean, scale if weight is None else scale * weight, 0.0 if bias is None else bias


class MixtureNorm(ComponentNormalizer):
    """Mixture normalization over (N, C, *spatial); the card is `normsmith show mixture`."""

    running_prior: Tensor | None
    pending_counts: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        components: int = 3,
        mixture: Literal["joint", "channel"] = "joint",
        iterations: int = 1,
        em_every: int = 1,
        temperature: float = 1.0,
        unit_variance: bool = False,
        grad_through_posterior: bool = False,
        **running: Unpack[Running],
    ) -> None:
        name = type(self).__name__
        check_components(name, components)
        one_of(name, "mixture", mixture, ("joint", "channel"))
        for option, value in (("iterations", iterations), ("em_every", em_every)):
            if type(value) is not int or value < 1:
                raise OptionError(f"{name} expects {option} as a positive integer: got {value!r}; try 1")
        if not temperature > 0:
            raise OptionError(f"{name} expects temperature above zero: got {temperature!r}; 1 is that of the mixture itself")
        self.components = components
        super().__init__(num_features, **running)
        self.mixture, self.iterations, self.em_every = mixture, iterations, em_every
        self.temperature, self.unit_variance = temperature, unit_variance
        self.grad_through_posterior = grad_through_posterior
        self._first_batch_sets = components > 1  # where EM starts next time; a single component is batch norm
        like = self._buffers["running_mean"]
        shape = (components, 1 if mixture == "joint" else num_features)
        self.register_buffer("running_prior", None if like is None else like.new_full(shape, 1 / components))
        waits = like is not None and self.accumulate > 1
        self.register_buffer("pending_counts", like.new_zeros(shape) if waits and like is not None else None, persistent=False)

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1, equal priors."""
        super().reset_running_stats()
        if self.running_prior is not None:
            self.running_prior.fill_(1 / self.components)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        constant = self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE)
        fitted = self._average() if constant else self._fit(x, mask)
        make = partial(density, joint=self._joint, temperature=self.temperature)
        options = partial(mix, eps=self.eps, unit_variance=self.unit_variance)
        result = normalize_mixture(
            x,
            make,
            options,
            *fitted,
            self.weight,
            self.bias,
            measures=not constant,
            through=self.grad_through_posterior,
            mask=mask,
            world=None if constant else self.world,
        )
        if not constant:
            assert result.batch is not None
            self._take(x, mask, fitted, result.batch)
        return self.activated(result.y)

    @property
    def _joint(self) -> bool:
        return self.mixture == "joint"

    def _average(self) -> Mixture:
        """The running mixture, for one forward; the same copies as `constants` makes, and for the same reasons."""
        assert self.running_prior is not None
        with torch.enable_grad():
            mean, var = self.constants()
        prior = self.running_prior
        if torch.compiler.is_compiling():
            return Mixture(prior.unsqueeze(0).cumsum(0).squeeze(0), mean, var)
        return Mixture(prior.clone(), mean, var)

    @torch.no_grad()
    def _fit(self, x: Tensor, mask: Tensor | None) -> Mixture:
        """The mixture of this batch, of all ranks' if synchronised."""
        with without_autocast(x):
            tracked = self._buffers["num_batches_tracked"]
            if tracked is None:
                return self._improved(x, mask, self._seeded(x, mask))
            batches, fresh, average = self._so_far(tracked.max())
            # Off the CPU reading the counter would wait, and in a graph it cannot be read: all is computed, and chosen from.
            if x.device.type == "cpu" and not must_stay_plain((x,)):
                number = int(batches)
                start = self._seeded(x, mask) if bool(fresh) else average
                return self._improved(x, mask, start) if number % self.em_every == 0 else start
            start = self._seeded(x, mask).where(fresh, average)
            return self._improved(x, mask, start).where(batches % self.em_every == 0, start)

    def _so_far(self, batches: Tensor) -> tuple[Tensor, Tensor, Mixture]:
        """How many batches there were, whether EM is to start anew, and the mixture that it starts from otherwise.

        Inside `collecting` it starts anew once: components of batches that each did so could not be merged, as one batch's first may be
        the other's second.
        """
        average = self._average()
        # Components that are all alike, from a batch norm's checkpoint, would stay so.
        fresh = (batches == 0) | ((average.mean == average.mean[0]).all() & (self.components > 1))
        if self.collected is None:
            return batches, fresh, average
        mean, var, counts, number = (t.to(average.mean) for t in self.collected)
        found = Mixture(_em.shares_of(_em.per_mixture(counts, self._joint)), mean, var.clamp_min(_em.FLOOR))
        begun = number.max() > 0
        return batches + number.max().long(), fresh & ~begun, found.where(fresh & begun, average)

    def _seeded(self, x: Tensor, mask: Tensor | None) -> Mixture:
        points = _em.sample(x, mask, self.world)
        found = _em.seed(
            points.double(), self.components, self._joint
        )  # few: and which are far apart is told by small differences
        return Mixture(*(t.to(torch.promote_types(x.dtype, torch.float32)) for t in found))

    def _improved(self, x: Tensor, mask: Tensor | None, start: Mixture) -> Mixture:
        """After some steps of EM; or all in one, where there are fewer points than components."""
        for _ in range(self.iterations):
            found = weigh(x, start.density(self._joint, self.temperature), mask=mask, world=self.world)
            start = _em.maximise(found, self._joint)
        points = found.counts().sum(0, keepdim=True)
        few = points.amax(1, keepdim=True) < self.components - 0.5 if self._joint else points < self.components - 0.5
        return start._replace(prior=torch.where(few, _em.alone(start).prior, start.prior))

    @torch.no_grad()
    def _take(self, x: Tensor, mask: Tensor | None, fitted: Mixture, batch: Moments) -> None:
        """Take the batch into the running mixture."""
        tracked = self._buffers["num_batches_tracked"]
        if tracked is None or self.running_prior is None:
            return
        if self.collected is not None:  # the priors follow from what was collected: `settled`
            self.update(batch)
            return
        before = tracked.clone()
        self.update(batch)
        moved = (tracked != before).any()
        counts = _em.per_mixture(batch.counts(), self._joint)
        if self.pending_counts is not None:
            self.pending_counts.add_(torch.where(counts.isfinite(), counts, 0).to(self.pending_counts))
            counts = self.pending_counts.clone()
            self.pending_counts.mul_(~moved)
        prior = _em.shares_of(counts)
        step = self._step(tracked.max(), self.running_prior.dtype)
        step = (
            step.to(self.running_prior) if isinstance(step, Tensor) else step
        )  # a number is not sent to a GPU, which would wait
        new = torch.lerp(self.running_prior, prior.to(self.running_prior), step)
        self.running_prior.copy_(torch.where(moved, new, self.running_prior))
        if self.components > 1:
            self._revive(x, mask, fitted, moved)

    def settled(self, counts: Tensor) -> None:
        if self.running_prior is not None:
            prior = _em.shares_of(_em.per_mixture(counts, self._joint)).to(self.running_prior)
            self.running_prior.copy_(torch.where(prior.isfinite(), prior, self.running_prior))

    def _revive(self, x: Tensor, mask: Tensor | None, fitted: Mixture, moved: Tensor) -> None:
        """Start dead components anew where the mixture explains least, with an even share and the spread of all."""
        assert self.running_prior is not None
        dead = (self.running_prior < _em.least_share(self.components)) & moved
        if x.device.type == "cpu" and not must_stay_plain((x,)) and not bool(dead.any()):
            return
        points = _em.sample(x, mask, self.world).to(self.running_prior.dtype)
        if points.shape[0] < self.components:
            return
        spread = _em.spread_of(points, self._joint)
        far = _em.lowest(points, log_evidence(points, fitted.density(self._joint, self.temperature)), self.components)
        enough = far.isfinite().all() & (points.isfinite().all(1).sum() >= self.components)
        dead = dead & enough
        assert self.running_mean is not None
        assert self.running_var is not None
        even = torch.where(dead, 1 / self.components, self.running_prior)
        self.running_prior.copy_(even / even.sum(0, keepdim=True))
        self.running_mean.copy_(torch.where(dead, far.to(self.running_mean), self.running_mean))
        self.running_var.copy_(torch.where(dead, spread.to(self.running_var), self.running_var))

    def options(self) -> dict[str, Any]:
        own = ("mixture", "iterations", "em_every", "temperature", "unit_variance", "grad_through_posterior")
        return {**{key: getattr(self, key) for key in own}, **super().options()}

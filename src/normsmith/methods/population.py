"""Population normalization: batch norm by population statistics that are constants, for training with gamma decay in place of batch noise.

Formula: y = (x - mean_P) / sqrt(var_P + eps) * weight + bias, without gradient through mean_P and var_P. They are running averages of the
batch statistics, updated before they are used; `momentum` is 0.01, and the first batch sets them. For the first `warmup` batches the
batch's own statistics normalize, with their gradient, as in batch norm. In evaluation the same averages serve.
What batch norm adds beside, by its noise, is a decay of weight: `ns.gamma_decay(model)` gives the sum of zeta * weight², zeta a constant,
zeta = (rho + 2) / (8 M) * F + mean A'' / (2 M), where rho is the excess kurtosis of x per channel; A'' = sigmoid(y) the slope of a soft
ReLU (`activation="linear"`: 1); F = mean A'' * xhat² the Fisher information of weight (`fisher="empirical"`: the mean square of its
gradient per sample, a step late, of a loss that is the mean over samples); and M the batch size whose noise is meant: `emulate` samples,
with count="elements" times positions.

Differs from batch norm: no gradient through the statistics, so its Jacobian is diagonal; a sample depends on its mates only through slow
averages, and without gamma decay the noise is gone. Differs from the lecture: it leaves sigma² out of the variance of the batch's sigma,
which is sigma² (rho + 2) / (4 M). The approximation is good to O(1 / M) only where dL/dweight is zero.
Cost: 1 pass over x for the averages, 1 forward, 2 backward; with `emulate` several more for rho, A'' and F.
Fails when: weights move fast and the averages are stale: outputs blow up; raise `momentum` or `warmup`.
Reference: Luo, Wang, Shao and Peng, "Towards Understanding Regularization in Batch Normalization", ICLR 2019.
"""

import math
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.cells import cut
from normsmith.errors import OptionError
from normsmith.measure import measure
from normsmith.methods._base import one_of
from normsmith.methods._options import Statistics
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.surroundings import is_recomputing


def mix(
    cells: None, batch: None, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Standardized:
    return Standardized(Moments(mean, var, 1), weight, bias, eps)


class PopulationNorm(RunningNormalizer):
    """Population normalization over (N, C, *spatial); the card is `normsmith show population`.

    `emulate` None keeps no statistics for gamma decay.
    """

    _first_batch_sets = True

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float | None = 0.01,
        warmup: int = 0,
        emulate: int | None = None,
        count: Literal["samples", "elements"] = "samples",
        activation: Literal["relu", "linear"] = "relu",
        fisher: Literal["model", "empirical"] = "model",
        **running: Unpack[Statistics],
    ) -> None:
        super().__init__(num_features, momentum=momentum, **running)
        name = type(self).__name__
        if not self.track_running_stats:
            raise OptionError(f"{name} expects running statistics, which it normalizes by: got track_running_stats=False")
        if type(warmup) is not int or warmup < 0:
            raise OptionError(f"{name} expects warmup as a number of batches: got {warmup!r}")
        if emulate is not None and (type(emulate) is not int or emulate < 1):
            raise OptionError(f"{name} expects emulate as a number of samples, or None: got {emulate!r}")
        one_of(name, "count", count, ("samples", "elements"))
        one_of(name, "activation", activation, ("relu", "linear"))
        one_of(name, "fisher", fisher, ("model", "empirical"))
        self.warmup, self.emulate, self.count, self.activation, self.fisher = warmup, emulate, count, activation, fisher
        self.positions = 1  # of the last input
        self._watched = Watched()
        if emulate is not None and self.running_mean is not None:
            # Excess kurtosis of x, mean of A'', Fisher information of weight.
            self.register_buffer("decay_statistics", self.running_mean.new_zeros((3, num_features)))

    decay_statistics: Tensor

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", "use a larger batch"):
            return self.by_running(x, mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.warmup > 0):
            _, batch = measure(x, sees="batch", mask=mask, world=self.world)
        assert batch is not None
        self.update(batch.detach())
        mean, var = self._population(batch)
        if self.emulate is not None:
            self._watch(x, mask, batch.detach())
        weight = self._watched.expand(self.weight, x) if self.fisher == "empirical" else self.weight
        options = partial(mix, eps=self.eps)
        return normalize(x, options, mean, var, weight, self.bias, sees="nothing", mask=mask, act=self.bend).y

    def _population(self, batch: Moments) -> tuple[Tensor, Tensor]:
        """The averages, or the batch itself while warming up."""
        mean, var = self.constants()
        if self.warmup == 0:
            return mean, var
        assert self.num_batches_tracked is not None
        early = self.num_batches_tracked <= self.warmup
        return torch.where(early, batch.mean.view(-1), mean), torch.where(early, batch.var.view(-1), var)

    @torch.no_grad()
    def _watch(self, x: Tensor, mask: Tensor | None, batch: Moments) -> None:
        """Average what gamma decay needs to know of this batch; of all ranks' batches if synchronised."""
        if is_recomputing():
            return
        self.positions = math.prod(x.shape[2:])
        view = cut(x).to(batch.mean.dtype)
        counted = None if mask is None else mask.reshape(mask.shape[0], mask.shape[1], -1).expand(view.shape)
        centered = view - batch.mean.unsqueeze(2)
        found = [centered.square().square()]
        mean, var = self.constants()
        standard = (view - mean.view(1, -1, 1)) * (var.view(1, -1, 1) + self.eps).rsqrt()
        slope = self._slope(standard)
        found += [slope, slope * standard.square()]
        total = torch.as_tensor(batch.count, dtype=view.dtype, device=view.device).reshape(-1).clamp_min(1)
        sums = torch.stack([(f if counted is None else torch.where(counted, f, 0)).sum((0, 2)) for f in found])
        if self.world is not None:
            sums = self.world.gather(sums.view(1, -1)).sum(0).view_as(sums)
        fourth, curvature, fisher = sums / total
        kurtosis = (fourth / batch.var.view(-1).square().clamp_min(torch.finfo(view.dtype).tiny) - 3).clamp(-2, 30)
        if self.fisher == "empirical":
            fisher = self._watched.mean_square(self.decay_statistics[2])
        new = torch.stack([kurtosis, curvature, fisher])
        assert self.num_batches_tracked is not None
        step = self._step(self.num_batches_tracked, new.dtype)
        self.decay_statistics.lerp_(new.to(self.decay_statistics.dtype), step)

    def _slope(self, standard: Tensor) -> Tensor:
        """A'' of every output: the derivative of the activation."""
        if self.activation == "linear":
            return torch.ones_like(standard)
        y = standard if self.weight is None else standard * self.weight.view(1, -1, 1)
        return torch.sigmoid(y if self.bias is None else y + self.bias.view(1, -1, 1))

    def options(self) -> dict[str, Any]:
        own = ("warmup", "emulate", "count", "activation", "fisher")
        return {**{key: getattr(self, key) for key in own}, **super().options()}


class Watched:
    """The weight of the last forward, a row for each sample, whose gradients are looked at in the next; a copy starts anew."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def expand(self, weight: Tensor | None, x: Tensor) -> Tensor | None:
        """The weight of every sample."""
        if weight is None or not (torch.is_grad_enabled() and weight.requires_grad):
            return weight
        self.rows = weight.expand(x.shape[0], -1)
        self.rows.retain_grad()
        return self.rows

    def mean_square(self, otherwise: Tensor) -> Tensor:
        """The mean square of the gradient per sample, of a loss that was the mean over samples."""
        if self.rows is None or self.rows.grad is None:
            return otherwise
        return (self.rows.grad * self.rows.shape[0]).square().mean(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Watched":
        return Watched()

    def __reduce__(self) -> Any:
        return Watched, ()

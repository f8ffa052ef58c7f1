"""Sparse switchable norm: switchable norm whose proportions become one-hot in the course of training, one statistic chosen for good.

Formula: as switchable norm, with p = sparsestmax(mean_weight, radius) and q = sparsestmax(var_weight, radius), the nearest points of the
simplex at a distance of at least `radius` from equal parts (`ns.sparsestmax`). The radius grows linearly from 0 to 1 with the progress of
training: `ns.step_schedules(model, step, total)` after every optimizer step. Every choice is made by 82 % of training, and is then kept
in `mean_fixed` and `var_fixed`: neither gradients nor momentum nor weight decay of an optimizer move it. Equal logits leave no direction,
whatever the radius (at first, and where a batch of one sample makes instance and batch the same): they share until the end of the
schedule, then the first in the order instance, layer, batch is chosen.

Differs from batch norm as switchable norm does. Differs from the authors' code: that is not the arg-min wherever sparsemax has a zero
(one case in seven, by up to 0.16 in squared distance), and gives proportions that sum to 0.48 for equal logits. They write the choice into
the logits and drop the gradient; so do we, but the forward does not read the logits of a choice any more, so that nothing can move it.
With two statistics (`use_batch=False` or `instance=False`) the logits get a gradient only while the radius is smaller than their own
distance from equal parts.
Cost: 2 passes over x forward, 2 over x and dy backward.
Fails when: nobody calls `ns.step_schedules` (the radius stays 0), or it is told a total that training does not reach.
Reference: Shao et al., "SSN: Learning Sparse Switchable Normalization via SparsestMax", CVPR 2019.
"""

from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.methods._options import Running
from normsmith.methods._parts import Ratios, blend_parts, choose_parts, named, running_part, widened
from normsmith.methods._running import RunningNormalizer
from normsmith.methods._sparsestmax import NO_PREFERENCE, sparsestmax
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.plan import Sees


def mix(
    cells: Moments,
    batch: Moments | None,
    mean_ratios: Tensor,
    var_ratios: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    parts: tuple[str, ...],
    eps: float,
) -> Standardized:
    if running_mean is not None and running_var is not None:
        batch = Moments(running_mean, running_var, 1)
    return Standardized(blend_parts(cells, batch, mean_ratios, var_ratios, parts), weight, bias, eps)


class SparseSwitchableNorm(RunningNormalizer):
    """Sparse switchable norm over (N, C, *spatial); the card is `normsmith show sparse_switchable`."""

    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor
    parameter_kinds: ClassVar[dict[str, str]] = {"mean_weight": "logits", "var_weight": "logits"}

    def __init__(self, num_features: int, *, use_batch: bool = True, instance: bool = True, **running: Unpack[Running]) -> None:
        if not use_batch:
            running["track_running_stats"] = False
        super().__init__(num_features, **running)
        self.use_batch, self.instance = use_batch, instance
        self.parts = choose_parts("SparseSwitchableNorm", use_batch, instance)
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        self.mean_weight = nn.Parameter(torch.ones(len(self.parts), **where))
        self.var_weight = nn.Parameter(torch.ones(len(self.parts), **where))
        self.register_buffer("radius", torch.zeros((), **where))
        for name in ("mean_fixed", "var_fixed"):  # the part that is chosen for good; all false before
            self.register_buffer(name, torch.zeros(len(self.parts), dtype=torch.bool, device=where["device"]))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, equal parts of all statistics, nothing chosen."""
        super().reset_parameters()
        for name in {"mean_weight", "var_weight"} & self._parameters.keys():  # not there yet when the base class calls
            nn.init.ones_(getattr(self, name))
        for name in {"radius", "mean_fixed", "var_fixed"} & self._buffers.keys():
            getattr(self, name).zero_()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        running = running_part(self, x)
        sees: Sees = "both" if self.use_batch and running[0] is None else "cells"
        options = partial(mix, parts=self.parts, eps=self.eps)
        tensors = (*self.weights(), *running, self.weight, self.bias)
        result = normalize(x, options, *tensors, sees=sees, mask=mask, world=self.world, act=self.bend)
        if result.batch is not None and (x.numel() != self.num_features or self.process_group is not None):
            self.update(result.batch)
        return result.y

    def weights(self) -> tuple[Tensor, Tensor]:
        """The proportions of the means and of the variances."""
        free = sparsestmax(widened(torch.stack([self.mean_weight, self.var_weight])), self.radius)
        fixed = torch.stack([self.mean_fixed, self.var_fixed])
        mean_ratios, var_ratios = torch.where(fixed.any(1, keepdim=True), fixed.to(free.dtype), free).unbind(0)
        return mean_ratios, var_ratios

    def step_schedule(self, progress: float) -> None:
        """Move the radius, and keep what is one-hot by now; at the end of training, whatever is largest."""
        with torch.no_grad():
            self.radius.fill_(progress)
            choices = ((self.mean_weight, self.mean_fixed), (self.var_weight, self.var_fixed))
            for ratios, (logits, fixed) in zip(self.weights(), choices, strict=True):
                largest = ratios >= ratios.max() - NO_PREFERENCE
                first = largest & (largest.cumsum(0) == 1)
                chosen = fixed.any() | (ratios.max() >= 1 - NO_PREFERENCE) | (progress >= 1)
                fixed.copy_(torch.where(fixed.any(), fixed, first & chosen))
                logits.copy_(torch.where(fixed.any(), fixed.to(logits.dtype), logits))

    def ratios(self) -> Ratios:
        """What means and variances are made of: {"mean": {"instance": 0.2, ...}, "var": {...}}."""
        return named(self.parts, *self.weights())

    def options(self) -> dict[str, Any]:
        return {"use_batch": self.use_batch, "instance": self.instance, **super().options()}

"""Switchable norm: statistics of the sample and channel, of the sample and of the batch, in proportions that are learned.

Formula: y = (x - sum_k p_k mean_k) / sqrt(sum_k q_k var_k + eps) * weight_c + bias_c for k in (instance, layer, batch), with
p = softmax(mean_weight), q = softmax(var_weight), both of equal parts at first. In evaluation the batch's part has the running statistics,
a moving average, or after `with ns.collecting(model):` around some forwards the exact average over their batches; the other two are the
sample's own. `use_batch=False` leaves the batch out (logits of instance and layer). `instance=False` leaves the instance out (logits of
layer and batch), which is the form for (N, C); a layer that has it takes (N, C) too: a single number has mean x and variance 0.

Differs from batch norm: learns which statistics to use, and keeps working for small batches, down to one element per channel (which
then moves no running statistics). Differs from the lecture: that adds up standard deviations and leaves out eps; the paper and the code
add variances. Differs from the authors' code: its instance variance is unbiased and spreads into the other two as if it were biased
(`unbiased=True` does that, for comparisons; 8e-2 apart on 5x5 maps; theirs is NaN at a single position, here the variance is then 0; for
(N, C) their variances of layer and batch are unbiased, so with `instance=False` these are); its
momentum is 0.1 for images and 0.003 for the rest, here 0.1; its running variance starts at 0; its "batch average" is a sum never divided.
One-hot logits are instance, layer and batch norm. Take the logits out of weight decay: it pulls the choice back to equal parts.
Cost: 2 passes over x forward, 2 over x and dy backward; with `unbiased=True` two collectives each way among several ranks, not one.
Fails when: the batches of evaluation differ from those of training and the batch has the larger part.
Reference: Luo et al., "Differentiable Learning-to-Normalize via Switchable Normalization", ICLR 2019.
"""

from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.methods._options import Running
from normsmith.methods._parts import Ratios, blend_parts, choose_parts, corrected, named, running_part, widened
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.plan import Sees
from normsmith.world import World


def mix(
    cells: Moments,
    batch: Moments | None,
    mean_weight: Tensor,
    var_weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    parts: tuple[str, ...],
    unbiased: bool,
    world: World | None = None,
    eps: float,
) -> Standardized:
    layer = None
    if unbiased:
        if _are_rows(cells, parts):
            layer = corrected(cells.pool(1))
        cells = corrected(cells)
        batch = batch and _unbiased_batch(cells, parts, world)
    if running_mean is not None and running_var is not None:
        batch = Moments(running_mean, running_var, 1)
    return Standardized(blend_parts(cells, batch, mean_weight, var_weight, parts, layer, softmax=True), weight, bias, eps)


def _are_rows(cells: Moments, parts: tuple[str, ...]) -> bool:
    """Whether each cell is one number, and the authors have layer and batch alone."""
    return "instance" not in parts and isinstance(cells.count, int) and cells.count == 1


def _unbiased_batch(cells: Moments, parts: tuple[str, ...], world: World | None) -> Moments:
    """The batch as the authors take it from corrected cells. Those are no moments of x any more: so the world is asked here."""
    if world is None or cells.mean.shape[0]:
        batch = cells.pool(0)
    else:  # nothing, as the ranks with samples send it, and with a way back for the gradients that all must add up
        total = cells.map(lambda t: t.sum(0, keepdim=True))
        batch = Moments(total.mean, total.var, total.count if isinstance(total.count, Tensor) else 0)
    if world is not None:
        merged = world.merge(batch)
        batch = Moments(merged.mean, merged.var, merged.count)
    return corrected(batch) if _are_rows(cells, parts) else batch


class SwitchableNorm(RunningNormalizer):
    """Switchable norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show switchable`."""

    parameter_kinds: ClassVar[dict[str, str]] = {"mean_weight": "logits", "var_weight": "logits"}

    def __init__(
        self,
        num_features: int,
        *,
        use_batch: bool = True,
        instance: bool = True,
        unbiased: bool = False,
        **running: Unpack[Running],
    ) -> None:
        if not use_batch:
            running["track_running_stats"] = False
        super().__init__(num_features, **running)
        self.use_batch, self.instance, self.unbiased = use_batch, instance, unbiased
        self.parts = choose_parts("SwitchableNorm", use_batch, instance)
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        self.mean_weight = nn.Parameter(torch.ones(len(self.parts), **where))
        self.var_weight = nn.Parameter(torch.ones(len(self.parts), **where))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and equal parts of all statistics."""
        super().reset_parameters()
        for name in {"mean_weight", "var_weight"} & self._parameters.keys():  # not there yet when the base class calls
            nn.init.ones_(getattr(self, name))

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        running = running_part(self, x)
        sees: Sees = "both" if self.use_batch and running[0] is None else "cells"
        world, inner = (None, self.world) if self.unbiased else (self.world, None)
        options = partial(mix, parts=self.parts, unbiased=self.unbiased, world=inner, eps=self.eps)
        tensors = (self.mean_weight, self.var_weight, *running, self.weight, self.bias)
        result = normalize(x, options, *tensors, sees=sees, mask=mask, world=world, act=self.bend)
        if result.batch is not None and (x.numel() != self.num_features or self.process_group is not None):
            assert result.cells is not None
            batch = _unbiased_batch(corrected(result.cells), self.parts, inner) if self.unbiased else result.batch
            self.update(batch, final=self.unbiased)
        return result.y

    def weights(self) -> tuple[Tensor, Tensor]:
        """The proportions of the means and of the variances."""
        return widened(self.mean_weight).softmax(0), widened(self.var_weight).softmax(0)

    def ratios(self) -> Ratios:
        """What means and variances are made of: {"mean": {"instance": 0.2, ...}, "var": {...}}."""
        return named(self.parts, *self.weights())

    def options(self) -> dict[str, Any]:
        own = {"use_batch": self.use_batch, "instance": self.instance, "unbiased": self.unbiased}
        return {**own, **super().options()}

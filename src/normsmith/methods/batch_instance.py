"""Batch-instance norm: each channel learns how much of it is batch-normalized and how much instance-normalized.

Formula: y = (rho_c * x_B + (1 - rho_c) * x_I) * weight_c + bias_c, x_B and x_I standardized by mean and biased variance over
(N, *spatial) and over (*spatial); rho in [0, 1]. In evaluation x_B is by the running statistics, x_I by the sample's own.

Differs from batch norm: a channel whose style is noise can drop it (rho towards 0). rho=1 equals batch norm, 0 instance norm;
outputs are mixed, where switchable norm mixes statistics. rho starts at `initial=1`, as the authors' does. Differs from their code: it
clamps the parameter itself after each step of the optimizer; here what is used is clamped, and the gradient passes as if it were not, so
that a rho which an optimizer pushed out comes back. To keep it from drifting far do as they: `layer.rho.data.clamp_(0, 1)` after a
step. Their optimizer gives rho ten times the learning rate; that is the user's parameter group.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 2.
Fails when: there is one position only: x_I is then zero whatever the input (an error in training; with `on_single="running"` it is done
so, x_I has no running statistics).
Reference: Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks", NeurIPS 2018.
"""

import math
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from normsmith.affine import Triple
from normsmith.errors import OptionError
from normsmith.methods import batch as batch_norm
from normsmith.methods import instance as instance_norm
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments,
    batch: Moments | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    rho: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Triple:
    if running_mean is not None and running_var is not None:
        batch = Moments(running_mean, running_var, 1)
    assert batch is not None
    share = rho + (rho.clamp(0, 1) - rho).detach()
    of_batch = share * (batch.var + eps).rsqrt()
    scale = of_batch + (1 - share) * (cells.var + eps).rsqrt()
    # One center for both: the mean of the two means, weighted by their part of the scale.
    center = cells.mean + (batch.mean - cells.mean) * (of_batch / scale)
    return center, scale if weight is None else scale * weight, 0.0 if bias is None else bias


class BatchInstanceNorm(RunningNormalizer):
    """Batch-instance norm over (N, C, *spatial), at least one spatial dimension; the card is `normsmith show batch_instance`."""

    rho: nn.Parameter
    parameter_kinds: ClassVar[dict[str, str]] = {"rho": "logits"}

    def __init__(self, num_features: int, *, initial: float = 1.0, **running: Unpack[Running]) -> None:
        if not 0 <= initial <= 1:
            raise OptionError(
                f"BatchInstanceNorm expects initial, where rho starts, from 0 (instance) to 1 (batch): got {initial!r}"
            )
        super().__init__(num_features, **running)
        self.initial = initial
        self.rho = nn.Parameter(torch.empty(num_features, device=running.get("device"), dtype=running.get("dtype")))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "rho" in self._parameters:
            nn.init.constant_(self.rho, self.initial)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        self.falls_back(x, math.prod(x.shape[2:]), "sample and channel", instance_norm.CURE)
        single = self.falls_back(x, x.numel() // self.num_features, "channel", batch_norm.CURE)
        running = self.constants() if self.uses_running_stats or single else (None, None)
        result = normalize(
            x,
            partial(mix, eps=self.eps),
            *running,
            self.rho,
            self.weight,
            self.bias,
            sees="both" if running[0] is None else "cells",
            mask=mask,
            world=self.world,
            act=self.bend,
        )
        if result.batch is not None:
            self.update(result.batch)
        return result.y

    def options(self) -> dict[str, Any]:
        return {"initial": self.initial, **super().options()}

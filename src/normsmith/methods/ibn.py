"""Instance-batch norm: the first channels are instance-normalized, the rest batch-normalized.

Formula: with half = int(C * ratio): y = (x - mean) / sqrt(var + eps) * weight_c + bias_c, mean and biased variance over (*spatial) for
channels below half, over (N, *spatial) for the others. In evaluation the instance channels still use their own statistics, the batch
channels the running ones, whose buffers have the shape (C - half,).

Differs from batch norm: what contrast and style of an image do to the first channels is removed, what they do to the rest is kept.
`ratio=0` equals batch norm, `ratio=1` instance norm. Differs from the authors' code: one weight and one bias for all channels, theirs
come in two layers; theirs fails for a ratio below 0.5 and for odd C, here any will do. Where in a network it stands (IBN-a, IBN-b) is
not this layer's affair. A ratio of 0.5, as theirs.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 2.
Fails when: there is one position only: the instance channels give their bias whatever the input (an error in training; with
`on_single="running"` it is done so, they have no running statistics).
Reference: Pan, Luo, Shi and Tang, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018.
"""

import math
from functools import partial
from typing import Any, Unpack

from torch import Tensor
from torch.nn.functional import pad

from normsmith.affine import Standardized
from normsmith.combined import by_channels
from normsmith.errors import OptionError
from normsmith.methods import batch as batch_norm
from normsmith.methods import instance as instance_norm
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments | None,
    batch: Moments | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    half: int,
    rest: int,
    eps: float,
) -> Standardized:
    if running_mean is not None and running_var is not None:
        batch = Moments(_after(half, running_mean), _after(half, running_var), 1)
    if cells is None or batch is None:  # all channels of one kind
        only = cells or batch
        assert only is not None
        return Standardized(only, weight, bias, eps)
    return Standardized(by_channels((cells, half), (batch, rest)), weight, bias, eps)


def _after(half: int, statistic: Tensor) -> Tensor:
    return pad(statistic, (half, 0)).unsqueeze(0)


class IBN(RunningNormalizer):
    """Instance-batch norm over (N, C, *spatial), at least one spatial dimension; the card is `normsmith show ibn`."""

    def __init__(self, num_features: int, *, ratio: float = 0.5, **running: Unpack[Running]) -> None:
        if not 0 <= ratio <= 1:
            raise OptionError(
                f"IBN expects ratio, the share of channels that are instance-normalized, from 0 to 1: got {ratio!r}; try 0.5"
            )
        self.ratio = ratio
        super().__init__(num_features, **running)

    @property
    def instance_features(self) -> int:
        """How many channels are instance-normalized."""
        return int(self.num_features * self.ratio)

    def statistics_shape(self) -> tuple[int, ...]:
        return (self.num_features - self.instance_features,)

    def part_of(self, statistic: Tensor) -> Tensor:
        return statistic[self.instance_features :].clone()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        half, rest = self.instance_features, self.num_features - self.instance_features
        if half:
            self.falls_back(x, math.prod(x.shape[2:]), "sample and channel", instance_norm.CURE)
        single = rest > 0 and self.falls_back(x, x.numel() // self.num_features, "channel", batch_norm.CURE)
        running = self.constants() if rest > 0 and (self.uses_running_stats or single) else (None, None)
        sees_batch = rest > 0 and running[0] is None
        result = normalize(
            x,
            partial(mix, half=half, rest=rest, eps=self.eps),
            *running,
            self.weight,
            self.bias,
            sees="both" if half and sees_batch else "batch" if sees_batch else "cells" if half else "nothing",
            mask=mask,
            world=self.world,
            act=self.bend,
        )
        if result.batch is not None:
            self.update(result.batch.map(lambda t: t[:, half:]))
        return result.y

    def options(self) -> dict[str, Any]:
        return {"ratio": self.ratio, **super().options()}

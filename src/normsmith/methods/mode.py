"""Mode normalization: several batch norms side by side, each sample in shares of them that a small gate reads from its channel means.

Formula: gates g_n = softmax(gate_weight m_n + gate_bias), m_n the means of a sample's channels, (C,); per mode k and channel, over the
batch, mean_k = sum g_nk x / sum g_nk and var_k = sum g_nk (x - mean_k)² / sum g_nk; y = sum_k g_nk (x - mean_k) / sqrt(var_k + eps) *
weight + bias. In evaluation running averages of mean_k and var_k take their place, the variance unbiased as batch norm's; the gate works
as in training.

Differs from batch norm: it fits data of several domains or styles. One mode is batch norm, and so are gates that are all equal.
The gate's matrix starts as a linear layer's, because modes that are equal at first stay so: they get the same gradient.
Differs from mixture normalization: shares are learned and those of a sample, not of an element, and there is no 1 / sqrt(share).
Differs from the paper: it averages the first and second moments of a mode over batches; we its mean and variance, which do not cancel.
Cost: 2 passes over x forward, 2 over x and dy backward, as batch norm, and a few operations on N·C·K numbers; evaluation 2. Synchronised
3 forward and 3 backward.
Fails when: as batch norm, for modes that few samples are in; or the channel means are large: the gate is then one-hot from the start.
Reference: Deecke, Murray and Bilen, "Mode Normalization", ICLR 2019.
"""

import math
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Triple
from normsmith.measure import measure
from normsmith.methods._components import ComponentNormalizer, check_components
from normsmith.methods._options import Running
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments,
    batch: None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    mode_mean: Tensor | None,
    mode_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
) -> Triple:
    gates = gates_of(cells, gate_weight, gate_bias)
    if mode_mean is None or mode_var is None:
        own = modes_of(cells, gates)
        mode_mean, mode_var = own.mean, own.var
    inverse = (mode_var + eps).rsqrt()
    scale = gates @ inverse
    center = gates @ (inverse * mode_mean) / scale
    return center, scale if weight is None else scale * weight, 0.0 if bias is None else bias


def gates_of(cells: Moments, gate_weight: Tensor, gate_bias: Tensor) -> Tensor:
    """The shares of every sample in the modes, (N, K)."""
    return torch.softmax(F.linear(cells.mean, gate_weight.to(cells.mean), gate_bias.to(cells.mean)), 1)


def modes_of(cells: Moments, gates: Tensor) -> Moments:
    """The moments of every mode, (K, C): those of the samples pooled, weighted by their gates."""
    counts = gates.T.unsqueeze(2) * cells.counts()  # (K, N, C)
    spread = Moments(cells.mean.expand_as(counts), cells.var.expand_as(counts), counts)
    return spread.pool(1).map(lambda t: t.squeeze(1))


class ModeNorm(ComponentNormalizer):
    """Mode normalization over (N, C, *spatial); the card is `normsmith show mode`."""

    parameter_kinds: ClassVar[dict[str, str]] = {"gate_weight": "gates", "gate_bias": "logits"}
    gate_weight: nn.Parameter
    gate_bias: nn.Parameter

    def __init__(self, num_features: int, *, components: int = 3, **running: Unpack[Running]) -> None:
        check_components(type(self).__name__, components)
        self.components = components
        super().__init__(num_features, **running)
        where: dict[str, Any] = {"device": running.get("device"), "dtype": running.get("dtype")}
        self.gate_weight = nn.Parameter(torch.empty(components, num_features, **where))
        self.gate_bias = nn.Parameter(torch.empty(components, **where))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0; the gate as nn.Linear starts."""
        super().reset_parameters()
        if "gate_bias" in self._parameters:  # the base class has made its own first
            bound = 1 / math.sqrt(self.gate_weight.shape[1])
            nn.init.uniform_(self.gate_weight, -bound, bound)
            nn.init.uniform_(self.gate_bias, -bound, bound)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        mean = var = None
        constant = self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE)
        merged = None
        if constant:
            mean, var = self.constants()
        elif self.world is not None:
            cells, _ = measure(x, sees="cells", mask=mask)
            assert cells is not None
            own = modes_of(cells, gates_of(cells, self.gate_weight, self.gate_bias))
            row = self.world.merge(own.map(lambda t: t.reshape(1, -1)))
            merged = row.map(lambda t: t.view(self.components, -1))
            mean, var = merged.mean, merged.var
        gate = (self.gate_weight, self.gate_bias)
        result = normalize(
            x, partial(mix, eps=self.eps), *gate, mean, var, self.weight, self.bias, sees="cells", mask=mask, act=self.bend
        )
        if not constant:
            assert result.cells is not None
            with torch.no_grad():
                self.update((merged or modes_of(result.cells, gates_of(result.cells, *gate))).detach())
        return result.y

"""GRU with a norm for each product of its gates.

Formula: with p = norm_ih(W x) + b and q = norm_hh(U h), gates in torch's order r, z, n: r = σ(p_r + q_r), z = σ(p_z + q_z),
n = tanh(p_n + r (q_n + b_hn)), h' = (1 - z) n + z h. As in `LSTM` the norms of the products have no bias, and weights start at `gamma`.
With norm=None it is torch's operator, and with an identity as norm the same numbers.
Reference: Cho et al., 2014, in torch's form; Ba, Kiros and Hinton, "Layer Normalization", 2016.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from normsmith.recurrent._base import Cell, Layers
from normsmith.recurrent._options import Shared
from normsmith.recurrent._steps import gru_bias, gru_step


class GRU(Layers):
    """Layers of a GRU, called as torch's and with its names of parameters, with a norm for each product; options as those of `LSTM`."""

    gates, states = 3, 1
    step, bias_of, fused = gru_step, gru_bias, torch.gru

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Unpack[Shared],
    ) -> None:
        own = self.start.given(GRU, options)
        super().__init__(input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, own)

    def forward(
        self, x: Tensor | PackedSequence, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Outputs in the form of `x`, and the last h; `lengths` (N,) of padded sequences, whose outputs are zero behind their end."""
        output, (h,) = self._through(x, None if hx is None else (hx,), lengths)
        return output, h


class GRUCell(Cell):
    """One step of `GRU`, called as torch's: h of the next step from an input and h of this one."""

    gates, states = 3, 1
    step, bias_of = gru_step, gru_bias

    def __init__(self, input_size: int, hidden_size: int, **options: Unpack[Shared]) -> None:
        super().__init__(input_size, hidden_size, self.start.given(GRUCell, options))

    def forward(self, x: Tensor, hx: Tensor | None = None, step: int = 0) -> Tensor:
        """`step` is the number of the step, counted from 0: batch norm has statistics for each."""
        return self._next(x, None if hx is None else (hx,), step)[0]

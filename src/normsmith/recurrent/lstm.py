"""LSTM with a norm for each product of its gates.

Formula: gates = norm_ih(W x) + norm_hh(U h) + b, c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(norm_c(c')), gates in torch's order i, f, g, o.
c itself is not normalized, only what the output sees of it. The norms of the products have no bias of their own, b is theirs: where a
method has one, it stays at zero. Weights of norms start at `gamma` 0.1, as with 1 the tanh saturates and gradients grow with each step of
batch norm. With norm=None it is torch's operator, and with an identity as norm the same numbers.

Layer norm takes its statistics over the 4H numbers of a product, as Ba et al. do; over each gate apart with norm="group:num_groups=4".
Batch norm has statistics of its own for each of the first `max_steps` steps, weight and bias for all steps together, as Cooijmans et al.
Reference: Hochreiter and Schmidhuber, 1997; Ba, Kiros and Hinton, 2016; Cooijmans et al., "Recurrent Batch Normalization", ICLR 2017.
"""

from typing import Unpack

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from normsmith.recurrent._base import Cell, Layers
from normsmith.recurrent._options import OfLSTM, Options
from normsmith.recurrent._steps import lstm_bias, lstm_step

Pair = tuple[Tensor, Tensor]
_START = Options(cell_norm="same", forget_bias=1.0)


class LSTM(Layers):
    """Layers of an LSTM, called as torch's and with its names of parameters, with a norm for each product.

    `norm` is what `ns.make` takes, or None; `cell_norm` is the norm of the cell, the same unless it is another or None. `h0_noise` is the
    standard deviation of noise on the first h in training: without it, sequences that begin alike give batch norm a variance of zero.
    `forget_bias` is the first bias of the forget gate, if there are biases.
    """

    gates, states, start = 4, 2, _START
    step, bias_of, fused = lstm_step, lstm_bias, torch.lstm

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        **options: Unpack[OfLSTM],
    ) -> None:
        own = self.start.given(LSTM, options)
        super().__init__(input_size, hidden_size, num_layers, batch_first, dropout, bidirectional, own)

    def forward(
        self, x: Tensor | PackedSequence, hx: Pair | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Pair]:
        """Outputs in the form of `x`, and the last (h, c); `lengths` (N,) of padded sequences, whose outputs are zero behind their end."""
        output, (h, c) = self._through(x, hx, lengths)
        return output, (h, c)


class LSTMCell(Cell):
    """One step of `LSTM`, called as torch's: h, c of the next step from an input and (h, c) of this one."""

    gates, states, start = 4, 2, _START
    step, bias_of = lstm_step, lstm_bias

    def __init__(self, input_size: int, hidden_size: int, **options: Unpack[OfLSTM]) -> None:
        super().__init__(input_size, hidden_size, self.start.given(LSTMCell, options))

    def forward(self, x: Tensor, hx: Pair | None = None, step: int = 0) -> Pair:
        """`step` is the number of the step, counted from 0: batch norm has statistics for each."""
        h, c = self._next(x, hx, step)
        return h, c

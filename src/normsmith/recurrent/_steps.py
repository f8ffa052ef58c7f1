"""The steps of LSTM and GRU, and how they follow each other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.recurrent._norms import by_row, normed

States = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU


class Part(NamedTuple):
    """What one layer in one direction is made of; absent norms and biases are None."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    norm_ih: nn.Module | None
    norm_hh: nn.Module | None
    norm_c: nn.Module | None


Step = Callable[[Part, Tensor, States, int], States]


def lstm_step(part: Part, product: Tensor, states: States, step: int) -> States:
    """The next (h, c) from the product of the input, biases in it; gates are input, forget, cell, output, as torch has them."""
    h, c = states
    let_in, keep, new, let_out = (product + _recurrent(part, h, step)).chunk(4, 1)
    c = keep.sigmoid() * c + let_in.sigmoid() * new.tanh()
    seen = c if part.norm_c is None else normed(part.norm_c, c, step)
    return let_out.sigmoid() * seen.tanh(), c


def gru_step(part: Part, product: Tensor, states: States, step: int) -> States:
    """The next (h,); gates are reset, update, new, as torch has them, and the recurrent bias of the last is inside the reset."""
    (h,) = states
    reset, keep, new = product.chunk(3, 1)
    from_reset, from_keep, from_new = _recurrent(part, h, step).chunk(3, 1)
    if part.bias_hh is not None:
        from_new = from_new + part.bias_hh.chunk(3)[2]
    new = (new + (reset + from_reset).sigmoid() * from_new).tanh()
    return (new + (keep + from_keep).sigmoid() * (h - new),)


def _recurrent(part: Part, h: Tensor, step: int) -> Tensor:
    product = F.linear(h, part.weight_hh)
    return product if part.norm_hh is None else normed(part.norm_hh, product, step)


def lstm_bias(part: Part) -> Tensor | None:
    """What is added to the product of the input."""
    return None if part.bias_ih is None or part.bias_hh is None else part.bias_ih + part.bias_hh


def gru_bias(part: Part) -> Tensor | None:
    """The same without the recurrent bias of the new state, which the reset gate acts on."""
    if part.bias_ih is None or part.bias_hh is None:
        return None
    reset, keep, new = part.bias_hh.chunk(3)
    return part.bias_ih + torch.cat([reset, keep, torch.zeros_like(new)])


def products(part: Part, rows: Tensor, sizes: list[int], bias: Tensor | None, first: int = 0) -> tuple[Tensor, ...]:
    """The products of the inputs of all steps by one multiplication, normalized at once where each row is by itself.

    The first of these steps has the number `first`.
    """
    if part.norm_ih is None:
        return torch.split_with_sizes(F.linear(rows, part.weight_ih, bias), sizes)
    found = F.linear(rows, part.weight_ih)
    if by_row(part.norm_ih):
        found = part.norm_ih(found)
        return torch.split_with_sizes(found if bias is None else found + bias, sizes)
    each = tuple(normed(part.norm_ih, one, step) for step, one in enumerate(torch.split_with_sizes(found, sizes), first))
    return each if bias is None else tuple(one + bias for one in each)


def run(step: Step, part: Part, inputs: tuple[Tensor, ...], states: States) -> tuple[Tensor, States]:
    """The outputs of all rows, and the last states of each sequence; sequences that have ended take no part in a step."""
    outputs, ended = [], []
    for number, product in enumerate(inputs):
        going = product.shape[0]
        if going < states[0].shape[0]:
            ended.append(tuple(state[going:] for state in states))
            states = tuple(state[:going] for state in states)
        states = step(part, product, states, number)
        outputs.append(states[0])
    ended.append(states)
    last = states if len(ended) == 1 else tuple(torch.cat(pieces[::-1]) for pieces in zip(*ended, strict=True))
    return torch.cat(outputs), last

"""The input of a recurrent layer, in any of its forms, as rows ordered by step; and its output in the form it came in."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from normsmith.errors import InputError

Form = Literal["packed", "padded", "even", "single"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences as rows (all elements, features): those of the first step, longest sequence first, then those of the second, and so on."""

    data: Tensor
    sizes: list[int]  # rows of each step, never growing
    form: Form
    batch_first: bool
    order: Tensor | None = None  # of the sequences, if it is not the caller's
    back: Tensor | None = None
    batch_sizes: Tensor | None = None
    total: int = 0  # steps of the padded form

    @property
    def samples(self) -> int:
        """The number of sequences."""
        return self.sizes[0]

    def with_data(self, data: Tensor) -> "Rows":
        """Other rows of the same sequences."""
        return replace(self, data=data)

    def reversal(self) -> Tensor:
        """The places of the rows where each sequence runs backwards; applied twice it is no change."""
        device = self.data.device
        if len(set(self.sizes)) == 1:
            return torch.arange(len(self.data), device=device).view(-1, self.samples).flip(0).flatten()
        sizes = torch.tensor(self.sizes)
        starts = sizes.cumsum(0) - sizes
        lengths = (sizes[:, None] > torch.arange(self.samples)).sum(0)
        places = [starts[lengths[:size] - 1 - step] + torch.arange(size) for step, size in enumerate(self.sizes)]
        return torch.cat(places).to(device)

    def ordered(self, state: Tensor) -> Tensor:
        """States (layers, N, H) in the order of the rows."""
        return state if self.order is None else state.index_select(1, self.order)

    def restored(self, state: Tensor) -> Tensor:
        """States in the order of the caller, without N if there was none."""
        state = state if self.back is None else state.index_select(1, self.back)
        return state.squeeze(1) if self.form == "single" else state

    def output(self) -> Tensor | PackedSequence:
        """The rows in the form the input had; zero where a sequence has ended."""
        if self.form in {"packed", "padded"}:
            assert self.batch_sizes is not None
            packed = PackedSequence(self.data, self.batch_sizes, self.order, self.back)
            if self.form == "packed":
                return packed
            return pad_packed_sequence(packed, self.batch_first, total_length=self.total)[0]
        y = self.data.view(len(self.sizes), self.samples, -1)
        if self.form == "single":
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y


def rows_of(name: str, x: Tensor | PackedSequence, lengths: Tensor | None, batch_first: bool, features: int) -> Rows:
    """The rows of an input: (T, N, features), (N, T, features) with `batch_first`, (T, features), or packed."""
    if isinstance(x, PackedSequence):
        if lengths is not None:
            raise InputError(f"{name} expects lengths beside a padded input alone: got a packed one; leave them out")
        _check(name, x.data, features, 2)
        return Rows(x.data, x.batch_sizes.tolist(), "packed", batch_first, x.sorted_indices, x.unsorted_indices, x.batch_sizes)
    _check(name, x, features, 2 if x.dim() == 2 and lengths is None else 3)
    if x.dim() == 2:
        return Rows(x, [1] * len(x), "single", batch_first)
    steps, samples = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    if lengths is None:
        x = x.transpose(0, 1) if batch_first else x
        return Rows(x.reshape(steps * samples, features), [samples] * steps, "even", batch_first)
    fits = lengths.shape == (samples,) and not lengths.is_floating_point() and lengths.dtype != torch.bool
    if not fits or int(lengths.min()) < 1 or int(lengths.max()) > steps:
        raise InputError(f"{name} expects lengths as {samples} integers from 1 to {steps}: got {lengths.tolist()}")
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first, enforce_sorted=False)
    sizes = packed.batch_sizes.tolist()
    order, back = packed.sorted_indices, packed.unsorted_indices
    return Rows(packed.data, sizes, "padded", batch_first, order, back, packed.batch_sizes, steps)


def _check(name: str, x: Tensor, features: int, rank: int) -> None:
    if x.dim() != rank or x.shape[-1] != features or 0 in x.shape:
        raise InputError(
            f"{name} expects sequences of {features} numbers with at least one step, (T, N, {features}), or (N, T, {features}) with "
            f"batch_first=True: got shape {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise InputError(f"{name} expects a floating-point input: got {x.dtype}; convert it with x.float()")

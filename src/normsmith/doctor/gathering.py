"""Streams of all ranks, brought together in one collective."""

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from normsmith.world import World


class Stream(Protocol):
    """What `FourMoments`, `Profile` and `TopK` have in common."""

    def merge(self, other: Self) -> Self:
        """The stream of what both have seen."""

    def state(self) -> list[Tensor]:
        """The tensors that are all there is to it, float64 or int64."""

    def restored(self, state: list[Tensor]) -> Self:
        """A stream like this one with that state."""


S = TypeVar("S", bound=Stream)


def gather(streams: Sequence[S], group: dist.ProcessGroup | None = None) -> list[S]:
    """What all ranks have seen, merged in the order of ranks, so the same on each; every rank needs the same streams in the same order.

    Without a group the default one, or this process alone. A rank without a batch takes part with empty streams.
    """
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    if group is None or not streams:
        return list(streams)
    states = [stream.state() for stream in streams]
    packed = torch.cat([_as_words(t) for state in states for t in state])
    merged: list[S] = []
    for row in World(group, "gather").gather(packed.unsqueeze(0)):
        pieces = iter(row.split([t.numel() for state in states for t in state]))
        theirs = [
            stream.restored([_as_type(next(pieces), t) for t in state]) for stream, state in zip(streams, states, strict=True)
        ]
        merged = theirs if not merged else [one.merge(two) for one, two in zip(merged, theirs, strict=True)]
    return merged


def _as_words(t: Tensor) -> Tensor:
    """The bits of a tensor of float64 or int64, as integers: a key does not fit into a float."""
    return t.contiguous().view(torch.int64).flatten()


def _as_type(words: Tensor, like: Tensor) -> Tensor:
    return words.contiguous().view(like.dtype).view(like.shape)

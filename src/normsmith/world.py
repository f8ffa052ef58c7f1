"""Synchronised statistics: the batch of several processes as one.

What travels is each rank's batch-pooled (count, mean, var), 2C + 1 numbers per layer forward, and the gradient of mean and var, 2C numbers
backward; never the cells. Ranks may hold unequal batches, and empty ones, but every rank must take every step: one that skips leaves the
others waiting until the time-out of the process group, which is then an error that names the layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normsmith.errors import SynchronizationError
from normsmith.moments import Moments, Pooled

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


class SharedGroup:
    """A process group inside a module: a copy of the module shares it, a pickle leaves it behind, as it ends with its processes."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedGroup":
        return self

    def __reduce__(self) -> Any:
        return SharedGroup, (None,)


@dataclass(frozen=True)
class World:
    """The ranks that share their statistics, and the layer that asks, for messages."""

    group: dist.ProcessGroup
    layer: str

    @property
    def size(self) -> int:
        """How many ranks."""
        return dist.get_world_size(self.group)

    def merge(self, batch: Moments) -> Pooled:
        """The moments of all ranks' batches together; differentiable where `batch` is."""
        merged = self._ranks(batch).pool(0)
        return Pooled(merged.mean, merged.var, merged.count, world=True)

    def average(self, batch: Moments) -> Moments:
        """Mean and variance averaged over the ranks, weighted by their counts."""
        ranks = self._ranks(batch)
        share = ranks.counts() / ranks.counts().sum(0, keepdim=True).clamp_min(1)
        mean, var = ((share * t).sum(0, keepdim=True) for t in (ranks.mean, ranks.var))
        return Moments(mean, var, ranks.counts().sum(0, keepdim=True))

    def _ranks(self, batch: Moments) -> Moments:
        """The moments of every rank, a row each."""
        channels = batch.mean.shape[-1]
        # The count is one number, or one a channel.
        counts = batch.counts() if isinstance(batch.count, Tensor) else batch.mean.new_full((1, 1), batch.count)
        every = self.gather(torch.cat([batch.mean, batch.var, counts], 1))
        return Moments(every[:, :channels], every[:, channels : 2 * channels], every[:, 2 * channels :])

    def gather(self, row: Tensor) -> Tensor:
        """The rows of all ranks, in their order."""
        return _Gather.apply(row, self) if row.requires_grad else self._gather(row)  # type: ignore[no-untyped-call]

    def add(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each value summed over the ranks."""
        packed = torch.cat([value.reshape(-1) for value in values])
        self._run("add up gradients", dist.all_reduce, packed, group=self.group)
        pieces = torch.split(packed, [value.numel() for value in values])
        return tuple(piece.view_as(value) for piece, value in zip(pieces, values, strict=True))

    def _gather(self, row: Tensor) -> Tensor:
        found = row.new_empty((self.size, row.shape[1]))
        self._run("gather statistics", _all_gather, found, row.contiguous(), group=self.group)
        return found

    def _run(self, task: str, collective: Any, *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, **options)
        except RuntimeError as error:
            raise SynchronizationError(
                f"{self.layer} expected all {self.size} ranks of its process group to {task}: rank {dist.get_rank(self.group)} "
                f"waited in vain, {str(error).strip().splitlines()[0]}; every rank must run the same forwards and backwards, with "
                "an empty batch if it has no data"
            ) from error


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient of a rank's row is what all ranks together send to it."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world._gather(row)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (summed,) = ctx.world.add(grads[0])
        own = dist.get_rank(ctx.world.group)
        return summed[own : own + 1], None

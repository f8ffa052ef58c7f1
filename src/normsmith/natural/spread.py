"""The mean and covariance of rows, merged over batches and ranks: what a refresh goes by."""

from typing import NamedTuple

import torch
from torch import Tensor

from normsmith.world import World


class Spread(NamedTuple):
    """Count, mean (channels,) and scatter (groups, channels of a group, the same): the sum of products of centred rows; in float64."""

    number: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, groups: int) -> "Spread":
        """That of rows (number, channels)."""
        wide = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        number, channels = wide.shape
        mean = wide.sum(0) / max(number, 1)
        centred = (wide - mean).view(number, groups, channels // groups).transpose(0, 1)
        return cls(mean.new_full((), number, dtype=torch.float64), mean.double(), (centred.mT @ centred).double())

    @classmethod
    def none(cls, channels: int, groups: int, device: torch.device) -> "Spread":
        """That of no rows."""
        size = channels // groups
        return cls(*(torch.zeros(s, dtype=torch.float64, device=device) for s in ((), (channels,), (groups, size, size))))

    def and_of(self, other: "Spread") -> "Spread":
        """Both together."""
        number = self.number + other.number
        share = other.number / number.clamp_min(1)
        step = other.mean - self.mean
        between = self.number * share * self._outer(step)
        return Spread(number, self.mean + share * step, self.scatter + other.scatter + between)

    def over_ranks(self, world: World) -> "Spread":
        """That of all ranks' rows together."""
        number, total = world.add(self.number, self.number * self.mean)
        mean = total / number.clamp_min(1)
        (scatter,) = world.add(self.scatter + self.number * self._outer(self.mean - mean))
        return Spread(number, mean, scatter)

    def covariance(self, centred: bool = True) -> Tensor:
        """The biased covariance of each group; not centred, the second moments."""
        found = self.scatter / self.number
        return found if centred else found + self._outer(self.mean)

    def _outer(self, row: Tensor) -> Tensor:
        parts = row.view(self.scatter.shape[0], -1, 1)
        return parts @ parts.mT

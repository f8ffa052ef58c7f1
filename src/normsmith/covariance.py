"""Moments with the covariances within groups of channels: what whitening takes instead of the variance.

`Covariance` is a `Moments` whose variance is the diagonal. Its pool is the law of total covariance, weighted by counts,
cov = mean(cov within) + cov(mean within), as free of cancellation as that of the variance.

Running statistics are numbers for each channel, so a covariance is kept there in rows, (g, C): row j has the covariance of every channel
with the j-th of its group.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normsmith.arithmetic import Dims
from normsmith.moments import Count, Moments

Kept = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Covariance(Moments):
    """Mean (R, C), variance (R, C), covariance (R, G, g, g) and count, an int or (R, 1), of R sets of vectors of C = G * g channels.

    In `kept` a mix leaves what was costly to find out about these values, for when it is run again for its derivative.
    """

    cov: Tensor
    kept: Kept = field(default_factory=dict, repr=False)

    @staticmethod
    def made(mean: Tensor, cov: Tensor, count: Count, kept: Kept | None = None) -> "Covariance":
        """Of mean and covariance; the variance is on the diagonal."""
        return Covariance(mean, cov.diagonal(dim1=-2, dim2=-1).flatten(1), count, cov, {} if kept is None else kept)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return self.cov.shape[1]

    def pool(self, dims: Dims) -> "Covariance":
        """The covariance of the union of all R sets; `dims` is 0."""
        rows, channels = self.mean.shape
        counts = self.count.to(self.mean) if isinstance(self.count, Tensor) else torch.full_like(self.mean[:, :1], self.count)
        total = counts.sum(0, keepdim=True)
        weights = counts / total.clamp_min(torch.finfo(total.dtype).tiny)
        held = counts > 0
        means = torch.where(held, self.mean, 0)
        mean = (weights * means).sum(0, keepdim=True)
        away = (means - mean).view(rows, self.groups, channels // self.groups)
        each = torch.where(held.view(-1, 1, 1, 1), self.cov, 0) + outer(away)
        return Covariance.made(mean, (weights.view(-1, 1, 1, 1) * each).sum(0, keepdim=True), total)

    def detach(self) -> "Covariance":
        """The same values, cut from the graph."""
        return Covariance.made(
            self.mean.detach(), self.cov.detach(), self.count.detach() if isinstance(self.count, Tensor) else self.count
        )


def outer(vectors: Tensor) -> Tensor:
    """The products of all pairs of elements of each vector: (..., g) to (..., g, g)."""
    return vectors.unsqueeze(-1) * vectors.unsqueeze(-2)


def in_rows(matrices: Tensor) -> Tensor:
    """Matrices of groups, (G, g, g), as rows over channels, (g, C): row j has column j of each."""
    return matrices.permute(2, 0, 1).flatten(1)


def of_groups(rows: Tensor) -> Tensor:
    """And back."""
    size, channels = rows.shape
    return rows.view(size, channels // size, size).permute(1, 2, 0)

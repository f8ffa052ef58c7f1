"""`whiten_by`: cells -> moments with covariances -> mix -> a matrix for each group of channels, as one autograd node.

The frame of `normalize` with matrices where that has numbers: a method is a pure function `mix(cells, batch, *tensors) -> (center, matrix,
bias)`, and y = matrix @ (x - center) + bias within each group. `cells` holds mean (N, C) and covariance (N, G, g, g) of every sample,
`batch` those of all; the matrix is (1, G, g, g), or (N, G, g, g) where samples differ in it.

All of the work is matrix products over blocks of samples that fit the cache; x - center lives in a block alone, so that nothing of the
size of x is written but y and dx, and nothing is kept but x. Forward two passes over x (mean and covariance, product); backward two over
x and dy: sums of dy and of dy (x - center)ᵀ, then the mix is differentiated on its small matrices, and

    d x = matrixᵀ dy + slope (x - mean) + d mean / count,  slope = (d cov + d covᵀ) / count.

Whoever must see plain operations, or differentiates the gradient, gets the same steps as ordinary torch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normsmith.affine import through
from normsmith.blocks import Scratch, blocks, in_groups, of, wide, write_map
from normsmith.cells import cut
from normsmith.covariance import Covariance
from normsmith.kernels.choose import backend_for
from normsmith.kernels.reference import statistics_type, widened
from normsmith.moments import Count
from normsmith.normalize import Normalized, refuse_captured, run
from normsmith.plan import Sees
from normsmith.surroundings import without_autocast
from normsmith.world import World

Triple = tuple[Tensor, Tensor, Tensor]  # center, matrix, bias
Mix = Callable[..., Triple]


def whiten_by(
    x: Tensor,
    mix: Mix,
    *tensors: Tensor | None,
    groups: int,
    sees: Sees,
    mask: Tensor | None = None,
    world: World | None = None,
) -> Normalized:
    """Multiply the channels of every group of `x` (N, C, *spatial) by the matrix that `mix` says; `mask` is (N, 1, *spatial)."""
    inside = None if mask is None else mask.flatten(2) if mask.dim() > 2 else mask.unsqueeze(2)
    step = _Pass(mix, tuple(t is not None for t in tensors), groups, sees, inside, world)
    given = tuple(t for t in tensors if t is not None)
    x = x if mask is None else torch.where(mask, x, 0)
    with without_autocast(x):
        return run(step, x, given)


class _Pass:
    """One forward of one tensor, and what its backward needs besides x and the tensors of the mix: a few matrices."""

    cells: Covariance | None = None
    batch: Covariance | None = None
    triple: Triple

    def __init__(
        self, mix: Mix, present: tuple[bool, ...], groups: int, sees: Sees, inside: Tensor | None, world: World | None
    ) -> None:
        self.mix, self.present, self.groups, self.sees, self.inside, self.world = mix, present, groups, sees, inside, world

    def plain(self, x: Tensor, tensors: Sequence[Tensor]) -> Normalized:
        """The whole forward as ordinary differentiable operations."""
        view = widened(cut(x))
        cells, batch = self.joined(self.plain_moments(view))
        center, matrix, bias = self.mixed(cells, batch, tensors)
        y = (matrix @ in_groups(view - center.unsqueeze(2), self.groups)).flatten(1, 2) + bias.unsqueeze(2)
        y = (y if self.inside is None else torch.where(self.inside, y, 0)).view(x.shape).to(x.dtype)
        return Normalized(y, cells and cells.detach(), batch and batch.detach())

    def plain_moments(self, view: Tensor) -> Covariance | None:
        """Of the batch, or of every sample if the mix wants cells."""
        if self.sees == "nothing":
            return None
        count = self.counted(view)
        divisor = count.clamp_min(1) if isinstance(count, Tensor) else count
        total = view.sum(2)  # one dimension at a time: see `of_batch`
        mean = (total.sum(0, keepdim=True) if self.sees == "batch" else total) / divisor
        moved = view - mean.unsqueeze(2)
        moved = in_groups(moved if self.inside is None else torch.where(self.inside, moved, 0), self.groups)
        cov = moved @ moved.mT
        cov = (cov.sum(0, keepdim=True) if self.sees == "batch" else cov) / (
            divisor.view(-1, 1, 1, 1) if isinstance(divisor, Tensor) else divisor
        )
        return Covariance.made(mean, cov, count)

    def counted(self, view: Tensor) -> Count:
        """How many vectors there are, in all or in every sample."""
        if self.inside is not None:
            held = self.inside.expand(view.shape[0], 1, view.shape[2]).sum(2).to(view.dtype)
            return held.sum(0, keepdim=True) if self.sees == "batch" else held
        return view.shape[0] * view.shape[2] if self.sees == "batch" else view.shape[2]

    def joined(self, found: Covariance | None) -> tuple[Covariance | None, Covariance | None]:
        """(cells, batch) as the mix sees them, that of all ranks."""
        if found is None:
            return None, None
        batch = None if self.sees == "cells" else found if self.sees == "batch" else found.pool(0)
        if batch is not None and self.world is not None:
            batch = _of_ranks(batch, self.world)
        return None if self.sees == "batch" else found, batch

    def mixed(self, cells: Covariance | None, batch: Covariance | None, tensors: Sequence[Tensor]) -> Triple:
        """What the mix gives for these values of its arguments."""
        rest = iter(tensors)
        return self.mix(cells, batch, *(next(rest) if here else None for here in self.present))

    def forward(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The output, block by block; what autograd would record of it is recorded by the node instead."""
        backend_for(x)  # an error where a forced backend cannot take x
        with torch.no_grad():
            self.cells, self.batch = self.joined(self.moments(x))
            with torch.enable_grad():  # on detached tensors only: whatever requires a gradient here came in by another door
                self.triple = self.mixed(self.cells, self.batch, [t.detach() for t in tensors])
            refuse_captured(self.triple, self.mix, "whiten_by")
            y = torch.empty_like(cut(x))
            center, matrix, bias = self.triple
            room, together = Scratch(), all(t.shape[0] == 1 for t in self.triple)
            for mine, (source, target), inside in blocks([cut(x), y], self.groups, self.inside, together):
                write_map(target, inside, of(matrix, mine), room.moved(source, of(center, mine)), of(bias, mine))
            return y.view(x.shape)

    def moments(self, x: Tensor) -> Covariance | None:
        """As `plain_moments`, block by block in one pass."""
        view = cut(x)
        if self.sees == "nothing":
            return None
        if view.numel() == 0 or self.inside is not None:
            return self.plain_moments(widened(view)) if view.numel() else self.nothing(view)
        return self.of_batch(view) if self.sees == "batch" else self.of_samples(view)

    def of_samples(self, view: Tensor) -> Covariance:
        """The moments of every sample."""
        room, count = Scratch(), view.shape[2]
        means, covs = [], []
        for _, (source,), _ in blocks([view], self.groups, None, together=False):
            means.append(source.mean(3, dtype=statistics_type(view)))
            covs.append(room.products(source, means[-1]))
        return Covariance.made(torch.cat(means).flatten(1), torch.cat(covs).div_(count), count)

    def of_batch(self, view: Tensor) -> Covariance:
        """Those of all samples, every block around a mean of its own, joined by the law of total covariance."""
        room, count = Scratch(), view.shape[0] * view.shape[2]
        means, shares, within = [], [], None
        for _, (source,), _ in blocks([view], self.groups, None, together=True):
            # One dimension at a time: torch sums over both of small maps with an error that grows with the number of samples.
            means.append(source.mean(3, dtype=statistics_type(view)).mean(0))
            shares.append(source.shape[0] * source.shape[3] / count)
            product = room.products(source, means[-1]).sum(0, keepdim=True)
            within = product if within is None else within.add_(product)
        assert within is not None
        cov = within.div_(count)
        if len(means) == 1:
            return Covariance.made(means[0].view(1, -1), cov, count)
        each = torch.stack(means)
        weights = each.new_tensor(shares).view(-1, 1, 1)
        mean = (weights * each).sum(0, keepdim=True)
        between = torch.einsum("bgi,bgj->gij", weights * (each - mean), each - mean)
        return Covariance.made(mean.flatten(1), cov + between, count)

    def nothing(self, view: Tensor) -> Covariance:
        """The moments of a rank without data."""
        rows, channels = (1 if self.sees == "batch" else view.shape[0]), view.shape[1]
        size = channels // self.groups
        zeros = view.new_zeros((rows, channels + 1 + channels * size), dtype=statistics_type(view))
        mean, count, cov = torch.split(zeros, [channels, 1, channels * size], 1)
        return Covariance.made(mean, cov.reshape(rows, self.groups, size, size), count)

    def backward(self, dy: Tensor, x: Tensor, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of x and of the tensors: sums over x, the derivative of the mix, one pass that writes dx."""
        center, matrix, _ = self.triple
        shared = center.shape[0] == matrix.shape[0] == 1
        rows = 1 if shared else x.shape[0]
        total, product = center.new_zeros((rows, x.shape[1])), matrix.new_zeros((rows, *matrix.shape[1:]))
        room = Scratch()
        for mine, (source, outer_grad), inside in blocks([cut(x), cut(dy)], self.groups, self.inside, shared):
            grad = wide(outer_grad, inside)
            own = torch.bmm(grad, room.moved(source, of(center, mine)).mT).view(-1, *matrix.shape[1:])
            sums = grad.sum(2).view(own.shape[0], -1)
            if shared:
                product += own.sum(0)
                total += sums.sum(0)
            else:
                product[mine], total[mine] = own, sums
        d_center = -(matrix.mT @ total.view(rows, *matrix.shape[1:3], 1)).flatten(1)
        statistics, grads = self.by_autograd(tensors, needed, (d_center, product, total))
        dx = self.gradient_of_x(dy, x, statistics) if needed[0] else None
        return [dx, *grads]

    def by_autograd(
        self, tensors: Sequence[Tensor], needed: Sequence[bool], outer_grads: Triple
    ) -> tuple[list[tuple[Covariance, Tensor, Tensor]], list[Tensor | None]]:
        """The gradients of the moments and of the tensors, by running the mix once more."""
        given = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed[1:], strict=True)]
        sources = [m for m in (self.cells, self.batch) if m is not None]
        leaves = [t.detach().requires_grad_(needed[0]) for m in sources for t in (m.mean, m.cov)]
        with torch.enable_grad():
            pairs = iter(zip(leaves[::2], leaves[1::2], strict=True))
            copies = [None if m is None else Covariance.made(*next(pairs), m.count, m.kept) for m in (self.cells, self.batch)]
            found = self.mixed(copies[0], copies[1], given)
        fitted = [(value, grad.sum_to_size(value.shape)) for value, grad in zip(found, outer_grads, strict=True)]
        grads = through(fitted, [*leaves, *given])
        every = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=False)]
        return list(zip(sources, every[::2], every[1::2], strict=True)), grads[len(leaves) :]

    def gradient_of_x(self, dy: Tensor, x: Tensor, statistics: list[tuple[Covariance, Tensor, Tensor]]) -> Tensor:
        """One pass that writes it."""
        dx, back, room = torch.empty_like(cut(x)), self.triple[1].mT, Scratch()
        pivot, slope, offset = self.lines(statistics)
        together = all(t is None or t.shape[0] == 1 for t in (back, pivot, slope, offset))
        for mine, (source, outer_grad, target), inside in blocks([cut(x), cut(dy), dx], self.groups, self.inside, together):
            more = None if pivot is None or slope is None else (of(slope, mine), room.moved(source, of(pivot, mine)))
            write_map(target, inside, of(back, mine), wide(outer_grad, inside), of(offset, mine), more)
        return dx.view(x.shape)

    def lines(self, statistics: list[tuple[Covariance, Tensor, Tensor]]) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The gradient through the moments, slope @ (x - pivot) + offset."""
        pivot = slope = None
        offset = torch.zeros_like(self.triple[2][:1])
        for m, grad_mean, grad_cov in statistics:
            d_mean, d_cov = grad_mean, grad_cov
            if m is self.batch and self.world is not None:
                d_mean, d_cov = self.world.add(d_mean, d_cov)
            count = m.count.clamp_min(1) if isinstance(m.count, Tensor) else max(m.count, 1)
            own_offset, own = (
                d_mean / count,
                (d_cov + d_cov.mT) / (count.view(-1, 1, 1, 1) if isinstance(count, Tensor) else count),
            )
            if pivot is None or slope is None:
                pivot, slope, offset = m.mean, own, own_offset
            else:
                away = (pivot - m.mean).view(pivot.shape[0], *own.shape[1:3], 1)
                slope, offset = slope + own, offset + own_offset + (own @ away).flatten(1)
        return pivot, slope, offset


def _of_ranks(batch: Covariance, world: World) -> Covariance:
    """The moments of all ranks' batches together; differentiable where `batch` is."""
    channels, shape = batch.mean.shape[1], batch.cov.shape[1:]
    counts = batch.count.to(batch.mean) if isinstance(batch.count, Tensor) else torch.full_like(batch.mean[:, :1], batch.count)
    every = world.gather(torch.cat([batch.mean, counts, batch.cov.flatten(1)], 1))
    mean, count, cov = torch.split(every, [channels, 1, every.shape[1] - channels - 1], 1)
    return Covariance.made(mean, cov.reshape(-1, *shape), count).pool(0)

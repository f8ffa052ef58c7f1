"""Tensors in blocks that fit the cache, as (samples, G, g, positions), and matrices times the groups of channels of a block.

In *rows* a block is some samples; where channels are adjacent in memory (*columns*) and samples need not be told apart, it is any run of
positions. What a block is multiplied with and what comes out keep that orientation, so that no transposed copy is made.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from normsmith.cells import layout
from normsmith.kernels.reference import statistics_type, widened

BLOCK = 1 << 20  # elements at a time: small enough for a shared cache, large enough that threads seldom wait for each other
Block = tuple[slice, list[Tensor], Tensor | None]  # the samples, the tensors, their mask


def blocks(views: list[Tensor], groups: int, inside: Tensor | None, together: bool) -> Iterator[Block]:
    """Blocks of cut tensors of one shape; `together` where samples need not be told apart."""
    samples, channels, positions = views[0].shape
    if together and inside is None and all(_is_flat(view) for view in views):
        flat = [view.permute(0, 2, 1).reshape(-1, channels) for view in views]
        for rows in _slices(samples * positions, channels, views[0]):
            yield slice(None), [t[rows].view(-1, groups, channels // groups).permute(1, 2, 0).unsqueeze(0) for t in flat], None
        return
    for mine in _slices(samples, channels * positions, views[0]):
        part = None if inside is None else inside.expand(samples, -1, -1)[mine].unsqueeze(1)
        yield mine, [in_groups(view[mine], groups) for view in views], part


def in_groups(view: Tensor, groups: int) -> Tensor:
    """(N, C, S) as (N, G, g, S)."""
    return view.view(view.shape[0], groups, view.shape[1] // groups, view.shape[2])


def _is_flat(view: Tensor) -> bool:
    """Whether a cut tensor is a matrix (samples and positions, channels) in memory."""
    positions = view.shape[2]
    return layout(view) == "columns" and (positions == 1 or view.shape[0] == 1 or view.stride(0) == positions * view.stride(2))


def _slices(length: int, weight: int, like: Tensor) -> Iterator[slice]:
    """A length in pieces of about one block; in one piece where there is no cache to fit."""
    size = max(1, BLOCK // max(weight, 1))
    if like.device.type != "cpu" or size >= length:
        size = max(length, 1)
    else:
        cores = torch.get_num_threads()
        size = size // cores * cores or size  # each gets as many of the products of a block
    return (slice(start, start + size) for start in range(0, length, size))


class Scratch:
    """Room for one block, used again by the next: fresh memory for each would cost more than what is written there."""

    room: Tensor | None = None

    def moved(self, block: Tensor, center: Tensor) -> Tensor:
        """A block minus its center, as (samples * G, g, positions)."""
        if self.room is None or self.room.shape != block.shape:
            self.room = torch.empty_like(block, dtype=statistics_type(block))
        torch.sub(block, center.view(-1, *block.shape[1:3], 1), out=self.room)
        return self.room.flatten(0, 1)

    def products(self, block: Tensor, center: Tensor) -> Tensor:
        """Of all pairs of channels of a group, around the center, summed over positions: (samples, G, g, g)."""
        moved = self.moved(block, center)
        return torch.bmm(moved, moved.mT).view(*block.shape[:2], block.shape[2], block.shape[2])


def of(t: Tensor, mine: slice) -> Tensor:
    """The samples of a block; what all samples share as it is."""
    return t[mine] if t.shape[0] > 1 else t


def wide(block: Tensor, inside: Tensor | None) -> Tensor:
    """A block in the type of statistics, zero outside the mask, as (samples * G, g, positions)."""
    return widened(kept(block, inside)).flatten(0, 1)


def kept(block: Tensor, inside: Tensor | None) -> Tensor:
    """A block with zero outside the mask."""
    return block if inside is None else torch.where(inside, block, 0)


def write_map(
    target: Tensor,
    inside: Tensor | None,
    matrix: Tensor,
    block: Tensor,
    offset: Tensor,
    more: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write matrix @ block + offset to a block, and in `more` another matrix @ block added to it."""
    groups, size = matrix.shape[1:3]
    samples = block.shape[0] // groups
    shift = offset.view(-1, groups, size, 1).expand(samples, -1, -1, -1).flatten(0, 1)
    place, first, rest = target.flatten(0, 1), _over(matrix, samples), more and (_over(more[0], samples), more[1])
    turned = _is_transposed(block)  # and so is all that belongs to it
    if turned:
        first, block, shift, place = block.mT, first.mT, shift.mT, place.mT
        rest = rest and (rest[1].mT, rest[0].mT)
    same = place.is_contiguous() and place.data_ptr() == target.data_ptr() and place.dtype == shift.dtype
    direct = inside is None and same
    found = torch.baddbmm(shift, first, block, out=place) if direct else torch.baddbmm(shift, first, block)
    if rest is not None:
        found.baddbmm_(*rest)
    if not direct:
        target.copy_(kept((found.mT if turned else found).reshape(target.shape), inside))


def _is_transposed(block: Tensor) -> bool:
    return block.stride(1) == 1 and block.stride(2) > 1


def _over(matrix: Tensor, samples: int) -> Tensor:
    """Matrices (R, G, g, g) for every group of every sample of a block."""
    return matrix.expand(samples, -1, -1, -1).flatten(0, 1)

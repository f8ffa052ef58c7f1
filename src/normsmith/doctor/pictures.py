"""Labels of the samples seen, and tiny pictures of those that are of interest."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

SIDE = 48  # of a picture at most
HELD = 512  # pictures, before those of no interest are dropped
NONE = torch.iinfo(torch.int64).min


def every_tensor(batch: Any) -> list[Tensor]:
    """The tensors of a batch, of any type, in their order."""
    if isinstance(batch, Tensor):
        return [batch]
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return [t for item in items for t in every_tensor(item)]


def size_of(batch: Any) -> int:
    """How many samples a batch has, by its first tensor; 0 if it has none."""
    first = next((t for t in every_tensor(batch) if t.dim()), None)
    return 0 if first is None else first.shape[0]


def labels_of(batch: Any, size: int) -> Tensor | None:
    """One whole number for each sample: the second item of a sequence, or what a mapping calls its labels."""
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in ("labels", "label", "targets", "target", "y") if key in batch), None)
    else:
        found = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    whole = isinstance(found, Tensor) and not found.is_floating_point() and not found.is_complex()
    return found if isinstance(found, Tensor) and whole and found.shape == (size,) else None


class Pictures:
    """Of a rank's own samples; its first sample is number `rank`, and each further one `ranks` more, as a distributed sampler deals."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.thumbnails: dict[int, Tensor] = {}
        self.seen = 0
        self._labels: list[Tensor] = []
        self._rank, self._ranks, self._room = rank, ranks, HELD

    def numbers(self, size: int) -> Tensor:
        """Those of the samples of the next batch."""
        return (torch.arange(size) + self.seen) * self._ranks + self._rank

    def add(self, batch: Any, size: int, of_interest: Callable[[], set[int]]) -> None:
        """Take down a batch that was seen."""
        numbers = self.numbers(size).tolist()
        self.seen += size
        found = labels_of(batch, size)
        self._labels.append(torch.full((size,), NONE) if found is None else found.detach().long().cpu())
        images = next((t for t in every_tensor(batch) if t.dim() == 4), None)
        if images is None or len(images) != size or images.shape[1] not in (1, 3) or not images.numel():
            return
        self.thumbnails.update(zip(numbers, thumbnails(images), strict=True))
        if len(self.thumbnails) > self._room:
            kept = of_interest()
            self.thumbnails = {index: picture.clone() for index, picture in self.thumbnails.items() if index in kept}
            self._room = len(self.thumbnails) + HELD

    @property
    def labels(self) -> Tensor:
        """The label of each sample of this rank, NONE where it has none."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *self._labels])


def thumbnails(images: Tensor) -> Tensor:
    """Small copies of pictures (N, 1 or 3, H, W), uint8, each stretched from its darkest to its brightest value.

    Every so many-th pixel is taken: averages would be nicer, and cost more than all else that is kept of samples.
    """
    step = -(-max(images.shape[2:]) // SIDE)
    images = images[:, :, ::step, ::step].detach().float().nan_to_num(0, 0, 0).cpu()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)

"""What the tasks made here share: grey images of another set, put on black canvases by a generator of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.data._seeds import generator
from normsmith.data._source import Source
from normsmith.data.dataset import Dataset, Split
from normsmith.errors import InputError, OptionError

INK = 64  # of 255: what is brighter belongs to the digit
_SAMPLES = {"train": 2000, "test": 500}


@dataclass(frozen=True, eq=False)
class Stock:
    """The images that one split is made of, and how."""

    images: Tensor  # (N, H, W), uint8
    labels: Tensor
    samples: int
    canvas: int
    draw: torch.Generator

    def pick(self) -> Tensor:
        """An index of an image for each sample."""
        return self.integers(len(self.images))

    def integers(self, below: int | Tensor) -> Tensor:
        """Numbers from 0 to below what is given, one for each sample."""
        shares = torch.rand(self.samples, generator=self.draw, dtype=torch.float64)
        return (shares * below).long()


def stocks(source: Source) -> tuple[Dataset, Stock, Stock]:
    """The set that `of=` names, and the stocks of both splits: no image is in both."""
    from normsmith.data.load import load  # noqa: PLC0415  (which reads this room by its name)

    of, seed = source.options.get("of", "digits"), source.options.get("seed", 0)
    if type(of) is not str or type(seed) is not int:
        raise OptionError(f"{source.name} expects of as the name of a set, seed as an integer: got of={of!r}, seed={seed!r}")
    data = load(of, source.root)
    if data.task != "classification" or data.channels != 1:
        raise InputError(
            f"{source.name} expects of= a set of grey images for classification, such as digits: got {of!r}, {data.task} with "
            f"{data.channels} channels"
        )
    side = max(data.size)
    canvas = source.positive("size", max(32, 2 * side))
    if canvas < side:
        raise OptionError(f"{source.name} expects size, the side of the canvas, of at least the {side} of {of!r}: got {canvas}")
    train, test = (
        Stock(_bytes(split), split.targets, source.positive(title, samples), canvas, generator(seed, source.name, title))
        for (title, samples), split in zip(_SAMPLES.items(), (data.train, data.test), strict=True)
    )
    return data, train, test


def _bytes(split: Split) -> Tensor:
    images = split.inputs[:, 0]
    return images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)


def paste(canvas: Tensor, images: Tensor, top: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put an image on each canvas (N, H, W), in place, the brighter pixel winning; the index of the places, for maps beside it."""
    height, width = images.shape[-2:]
    sample = torch.arange(len(canvas))[:, None, None]
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    place = (sample, rows, columns)
    canvas[place] = torch.maximum(canvas[place], images)
    return place

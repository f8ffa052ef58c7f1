"""Scenes: some digits on one canvas; the target is the class of each pixel, 0 where there is no ink."""

import torch

from normsmith.data._canvas import INK, Stock, paste, stocks
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split


def read(source: Source) -> Found:
    """Scenes of `objects` digits, which may overlap: there the later one is seen."""
    data, train, test = stocks(source)
    objects = source.positive("objects", 3)
    return Found(_made(train, objects), _made(test, objects), ("background", *data.classes), "segmentation")


def _made(stock: Stock, objects: int) -> Split:
    canvas = torch.zeros(stock.samples, stock.canvas, stock.canvas, dtype=torch.uint8)
    classes = torch.zeros(canvas.shape, dtype=torch.int64)
    height, width = stock.images.shape[-2:]
    for _ in range(objects):
        chosen = stock.pick()
        images = stock.images[chosen]
        top, left = stock.integers(stock.canvas - height + 1), stock.integers(stock.canvas - width + 1)
        place = paste(canvas, images, top, left)
        label = stock.labels[chosen].view(-1, 1, 1) + 1
        classes[place] = torch.where(images >= INK, label, classes[place])
    return Split(canvas[:, None], classes)

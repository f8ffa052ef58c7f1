"""Boxes: a digit somewhere on a canvas, at one of three sizes; the target is its class and the box around its ink."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.data._canvas import INK, Stock, paste, stocks
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split


def read(source: Source) -> Found:
    """Digits of the size they have, of half more, and of twice that, where the canvas has room."""
    data, train, test = stocks(source)
    return Found(_made(train), _made(test), data.classes, "localisation")


def _made(stock: Stock) -> Split:
    canvas = torch.zeros(stock.samples, stock.canvas, stock.canvas, dtype=torch.uint8)
    chosen, scale = stock.pick(), stock.integers(3)
    down, right = (torch.rand(stock.samples, generator=stock.draw, dtype=torch.float64) for _ in range(2))
    for index in range(3):
        mine = (scale == index).nonzero().flatten()
        images = stock.images[chosen[mine]]
        size = [min(stock.canvas, side * (2 + index) // 2) for side in images.shape[-2:]]
        grown = F.interpolate(images[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
        part = canvas[mine]
        top, left = ((share[mine] * (stock.canvas - side + 1)).long() for share, side in zip((down, right), size, strict=True))
        paste(part, grown.round().to(torch.uint8), top, left)
        canvas[mine] = part
    return Split(canvas[:, None], torch.cat([stock.labels[chosen].float()[:, None], _around(canvas >= INK)], 1))


def _around(ink: Tensor) -> Tensor:
    """Left, top, right and bottom of what is true in each map, in shares of its sides; the whole map where nothing is."""
    edges = []
    for along in (1, 2):  # over rows: which columns have ink; then the rows
        has = ink.any(along)
        length = has.shape[1]
        first = has.int().argmax(1)
        last = length - has.flip(1).int().argmax(1)
        edges.append((first / length, torch.where(has.any(1), last, length) / length))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], 1)

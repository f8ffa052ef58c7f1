"""Moving digits: clips in which a digit crosses a canvas; the class is the direction, which no single frame shows, or the digit."""

import torch

from normsmith.data._canvas import Stock, paste, stocks
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split
from normsmith.errors import OptionError
from normsmith.methods._base import one_of

_DIRECTIONS = ("east", "southeast", "south", "southwest", "west", "northwest", "north", "northeast")
_STEPS = torch.tensor([(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)])


def read(source: Source) -> Found:
    """Clips of `frames` frames, whose `label` is direction or digit."""
    data, train, test = stocks(source)
    frames, label = source.positive("frames", 8), source.options.get("label", "direction")
    one_of(source.name, "label", label, ("direction", "digit"))
    room = train.canvas - max(data.size)
    if frames < 2 or room < frames - 1:
        raise OptionError(
            f"{source.name} expects 2 frames or more, and a canvas with a pixel for each step: got {frames} frames and room for "
            f"{room} steps; give size="
        )
    classes = _DIRECTIONS if label == "direction" else data.classes
    made = [_made(stock, frames, room // (frames - 1), label == "direction") for stock in (train, test)]
    return Found(made[0], made[1], classes, "clips")


def _made(stock: Stock, frames: int, fastest: int, direction: bool) -> Split:
    """Each clip has a speed from half of the fastest on, and starts where its whole way fits on the canvas."""
    chosen, course = stock.pick(), stock.integers(len(_STEPS))
    images = stock.images[chosen]
    slowest = (fastest + 1) // 2
    speed = slowest + stock.integers(fastest - slowest + 1)
    steps = _STEPS[course] * speed[:, None]
    starts = []
    for axis in range(2):
        way = steps[:, axis] * (frames - 1)
        room = stock.canvas - images.shape[1 + axis] - way.abs()
        starts.append(stock.integers(room + 1) + (-way).clamp_min(0))
    clips = torch.zeros(stock.samples, frames, stock.canvas, stock.canvas, dtype=torch.uint8)
    for frame in range(frames):
        paste(clips[:, frame], images, starts[0] + frame * steps[:, 0], starts[1] + frame * steps[:, 1])
    return Split(clips[:, None], course if direction else stock.labels[chosen])

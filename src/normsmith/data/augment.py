"""Augmentations of a whole batch at once, on its device, in plain torch: "crop:padding=4, flip, cutout:size=8, colour:brightness=0.2".

What is drawn for a sample is a few numbers, drawn on the CPU from the generator that is given, so that they are the same on every device.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normsmith.data.dataset import Split
from normsmith.errors import OptionError
from normsmith.methods.catalog import among, options_in

Pair = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor, torch.Generator], Pair]


class Augmentation:
    """The steps of a specification, in its order, on raw inputs and their targets; `mean` is what cut-out pixels become."""

    def __init__(self, spec: str, split: Split, mean: Tensor) -> None:
        self.spec = spec
        self.steps = [_OPERATIONS[name](split, mean, **options) for name, options in parse(spec)]

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        """A batch, with new numbers from the generator for each of its samples."""
        for step in self.steps:
            x, y = step(x, y, generator)
        return x, y


def parse(spec: str) -> list[tuple[str, dict[str, Any]]]:
    """The operations and options of "crop:padding=4, colour:brightness=0.2,contrast=0.2, flip"."""
    parts: list[str] = []
    for item in filter(None, (item.strip() for item in spec.split(","))):
        goes_on = "=" in item and ":" not in item and parts
        parts[-1:] = [f"{parts[-1]},{item}"] if goes_on else [*parts[-1:], item]
    found = []
    for part in parts:
        name, _, options = part.partition(":")
        among({name.strip(): None}, list(_OPERATIONS), "an augmentation")
        operation = _OPERATIONS[name.strip()]
        known = [key for key in inspect.signature(operation).parameters if key not in {"split", "mean"}]
        values = options_in(options, part)
        among(values, known or ["none"], f"the augmentation {name.strip()}")
        found.append((name.strip(), values))
    return found


def crop(split: Split, mean: Tensor, padding: int = 4) -> Step:
    """Moved by up to `padding` pixels each way; black comes in, and class 0 in the map of a segmentation. A clip moves as a whole."""
    _expect(type(padding) is int and padding >= 1, "crop", "padding, in pixels, as a positive integer", padding)
    if _boxed(split):
        raise OptionError(
            "crop expects targets that a move can keep: got boxes, which might leave the image; take flip or colour"
        )

    def step(x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        down, right = torch.randint(-padding, padding + 1, (2, len(x)), generator=generator).to(x.device)
        x = _moved(_moved(x, down, -2), right, -1)
        return (x, _moved(_moved(y, down, -2), right, -1)) if y.ndim == 3 else (x, y)

    return step


def flip(split: Split, mean: Tensor) -> Step:
    """Left and right exchanged in half of the samples, with their maps and boxes."""
    if split.inputs.ndim == 5:
        raise OptionError("flip expects images: got clips, whose class may be a direction; leave it out")

    def step(x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        chosen = torch.randint(2, (len(x),), generator=generator).bool().to(x.device)
        x = torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x)
        if y.ndim == 3:
            y = torch.where(chosen.view(-1, 1, 1), y.flip(-1), y)
        elif y.ndim == 2:
            label, left, top, right, bottom = y.unbind(1)
            y = torch.where(chosen[:, None], torch.stack([label, 1 - right, top, 1 - left, bottom], 1), y)
        return x, y

    return step


def cutout(split: Split, mean: Tensor, size: int = 8) -> Step:
    """A square of `size` around a pixel drawn from all, becomes the mean; where it reaches over the edge, it is smaller."""
    height, width = split.inputs.shape[-2:]
    _expect(type(size) is int and size >= 1, "cutout", "size, in pixels, as a positive integer", size)

    def step(x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        top = torch.randint(height, (len(x),), generator=generator).to(x.device) - size // 2
        left = torch.randint(width, (len(x),), generator=generator).to(x.device) - size // 2
        rows = _between(torch.arange(height, device=x.device), top, size)
        columns = _between(torch.arange(width, device=x.device), left, size)
        inside = rows[:, :, None] & columns[:, None, :]
        inside = inside.view(len(x), *(1,) * (x.ndim - 3), height, width)
        fill = mean.mul(255).round().to(torch.uint8) if x.dtype == torch.uint8 else mean
        return torch.where(inside, fill, x), y

    return step


def colour(split: Split, mean: Tensor, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Step:
    """Brightness, contrast and saturation, in this order, each by a factor from 1 - its value to 1 + its value."""
    strengths: dict[str, Any] = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in strengths.items():
        _expect(isinstance(value, int | float) and 0 <= value <= 1, "colour", f"{name} from 0 to 1", value)
    _expect(any(strengths.values()), "colour", "brightness, contrast or saturation over 0", 0)
    channels = split.inputs.shape[1]
    _expect(channels == 3 or not saturation, "colour", "3 channels for saturation", channels)

    def step(x: Tensor, y: Tensor, generator: torch.Generator) -> Pair:
        shape = (len(x), *(1,) * (x.ndim - 1))
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        for name, strength in strengths.items():
            factor = (1 + strength * (2 * torch.rand(len(x), generator=generator) - 1)).to(x.device).view(shape)
            if strength and name == "brightness":
                x = (x * factor).clamp(0, 1)
            elif strength:
                grey = luma(x) if channels == 3 else x
                around = grey.mean(tuple(range(1, x.ndim)), keepdim=True) if name == "contrast" else grey
                x = (around + (x - around) * factor).clamp(0, 1)
        return x, y

    return step


def luma(x: Tensor) -> Tensor:
    """The grey of red, green and blue, after ITU-R BT.601, as one channel."""
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _moved(x: Tensor, by: Tensor, dim: int) -> Tensor:
    """Each sample moved along one dimension; zeros come in."""
    length = x.shape[dim]
    shape = [1] * x.ndim
    shape[0], shape[dim] = len(x), length
    source = (torch.arange(length, device=x.device) - by[:, None]).view(shape)
    inside = (source >= 0) & (source < length)
    return torch.where(inside, x.gather(dim, source.clamp(0, length - 1).expand(x.shape)), 0)


def _between(positions: Tensor, start: Tensor, size: int) -> Tensor:
    return (positions >= start[:, None]) & (positions < start[:, None] + size)


def _boxed(split: Split) -> bool:
    return split.targets.ndim == 2


def _expect(holds: bool, owner: str, what: str, got: object) -> None:
    if not holds:
        raise OptionError(f"the augmentation {owner} expects {what}: got {got!r}")


_OPERATIONS: dict[str, Callable[..., Step]] = {"crop": crop, "flip": flip, "cutout": cutout, "colour": colour}

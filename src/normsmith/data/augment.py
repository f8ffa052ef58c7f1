"""Augmentations of a whole batch at once, on its device, in plain torch: "crop:padding=4, flip, cutout:size=8".

What is random about a sample is a few numbers. They are drawn on the CPU, for all samples of an epoch at once, and applied to any slice of
them: the same numbers on every device, and at whatever step a run goes on.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.data.dataset import Split
from normsmith.errors import OptionError
from normsmith.methods._specs import among, options_in

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: what is drawn, a row for each sample, and what it does to inputs and targets."""

    draw: Callable[[int, torch.Generator], Tensor]
    apply: Callable[[Tensor, Tensor, Tensor], Pair]


class Augmentation:
    """The steps of a specification, in its order, on raw inputs and their targets; `mean` is what cut-out pixels become."""

    def __init__(self, spec: str, split: Split, mean: Tensor) -> None:
        self.spec = spec
        self.steps = [_OPERATIONS[name](split, mean, **options) for name, options in parse(spec)]

    def draw(self, samples: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
        """What each step draws for so many samples."""
        return [step.draw(samples, generator).to(device) for step in self.steps]

    def __call__(self, x: Tensor, y: Tensor, drawn: list[Tensor]) -> Pair:
        """Samples and their targets, changed by what was drawn for them."""
        for step, numbers in zip(self.steps, drawn, strict=True):
            x, y = step.apply(x, y, numbers)
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

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2 * padding + 1, (samples, 2), generator=generator)

    def apply(x: Tensor, y: Tensor, drawn: Tensor) -> Pair:
        return _windows(x, padding, drawn), _windows(y, padding, drawn) if y.ndim == 3 else y

    return Step(draw, apply)


def flip(split: Split, mean: Tensor) -> Step:
    """Left and right exchanged in half of the samples, with their maps and boxes."""
    if split.inputs.ndim == 5:
        raise OptionError("flip expects images: got clips, whose class may be a direction; leave it out")

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, (samples,), generator=generator).bool()

    def apply(x: Tensor, y: Tensor, chosen: Tensor) -> Pair:
        x = torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x)
        if y.ndim == 3:
            y = torch.where(chosen.view(-1, 1, 1), y.flip(-1), y)
        elif y.ndim == 2:
            label, left, top, right, bottom = y.unbind(1)
            y = torch.where(chosen[:, None], torch.stack([label, 1 - right, top, 1 - left, bottom], 1), y)
        return x, y

    return Step(draw, apply)


def cutout(split: Split, mean: Tensor, size: int = 8) -> Step:
    """A square of `size` around a pixel drawn from all, becomes the mean; where it reaches over the edge, it is smaller."""
    height, width = split.inputs.shape[-2:]
    _expect(type(size) is int and size >= 1, "cutout", "size, in pixels, as a positive integer", size)

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return torch.stack([torch.randint(side, (samples,), generator=generator) for side in (height, width)], 1)

    def apply(x: Tensor, y: Tensor, centres: Tensor) -> Pair:
        top, left = (centres - size // 2).unbind(1)
        rows = _between(torch.arange(height, device=x.device), top, size)
        columns = _between(torch.arange(width, device=x.device), left, size)
        inside = rows[:, :, None] & columns[:, None, :]
        inside = inside.view(len(x), *(1,) * (x.ndim - 3), height, width)
        fill = mean.mul(255).round().to(torch.uint8) if x.dtype == torch.uint8 else mean
        return torch.where(inside, fill, x), y

    return Step(draw, apply)


def colour(split: Split, mean: Tensor, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Step:
    """Brightness, contrast and saturation, in this order, each by a factor from 1 - its value to 1 + its value."""
    strengths: dict[str, Any] = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in strengths.items():
        _expect(isinstance(value, int | float) and 0 <= value <= 1, "colour", f"{name} from 0 to 1", value)
    _expect(any(strengths.values()), "colour", "brightness, contrast or saturation over 0", 0)
    channels = split.inputs.shape[1]
    _expect(channels == 3 or not saturation, "colour", "3 channels for saturation", channels)

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return 1 + torch.tensor([*strengths.values()]) * (2 * torch.rand(samples, 3, generator=generator) - 1)

    def apply(x: Tensor, y: Tensor, factors: Tensor) -> Pair:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        for (name, strength), factor in zip(strengths.items(), factors.T, strict=True):
            factor = factor.view(len(x), *(1,) * (x.ndim - 1))  # noqa: PLW2901
            if strength and name == "brightness":
                x = (x * factor).clamp(0, 1)
            elif strength:
                grey = luma(x) if channels == 3 else x
                around = grey.mean(tuple(range(1, x.ndim)), keepdim=True) if name == "contrast" else grey
                x = (around + (x - around) * factor).clamp(0, 1)
        return x, y

    return Step(draw, apply)


def affine(
    split: Split, mean: Tensor, degrees: float = 0.0, scale: float = 0.0, shear: float = 0.0, shift: float = 0.0
) -> Step:
    """Turned by up to `degrees`, scaled by 1 - `scale` to 1 + `scale`, sheared, shifted by a share of its sides; black comes in."""
    strengths: dict[str, Any] = {"degrees": degrees, "scale": scale, "shear": shear, "shift": shift}
    for name, value in strengths.items():
        most = 180 if name == "degrees" else 0.9
        _expect(isinstance(value, int | float) and 0 <= value <= most, "affine", f"{name} from 0 to {most}", value)
    _expect(any(strengths.values()), "affine", "degrees, scale, shear or shift over 0", 0)
    if split.inputs.ndim == 5 or split.targets.ndim != 1:
        raise OptionError(
            "affine expects images whose target is a class: got clips, maps or boxes, which it would not move along"
        )
    limits = torch.tensor([math.radians(degrees), scale, shear, 2 * shift, 2 * shift])
    height, width = split.inputs.shape[-2:]

    def draw(samples: int, generator: torch.Generator) -> Tensor:
        return limits * (2 * torch.rand(samples, 5, generator=generator) - 1)

    def apply(x: Tensor, y: Tensor, drawn: Tensor) -> Pair:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        angle, larger, slant, right, down = drawn.view(len(x), 5, 1, 1).unbind(1)
        # Where each pixel comes from, in pixels around the middle; each element by itself, so that no bit depends on the other samples.
        rows, columns = (torch.arange(side, device=x.device) - (side - 1) / 2 for side in (height, width))
        rows, columns = (rows.view(1, -1, 1) - down * height / 2) / (1 + larger), (columns - right * width / 2) / (1 + larger)
        columns = columns - slant * rows
        across = angle.cos() * columns + angle.sin() * rows
        along = angle.cos() * rows - angle.sin() * columns
        places = torch.stack([across * (2 / width), along * (2 / height)], 3)
        return F.grid_sample(x, places, align_corners=False), y

    return Step(draw, apply)


def luma(x: Tensor) -> Tensor:
    """The grey of red, green and blue, after ITU-R BT.601, as one channel."""
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _windows(x: Tensor, padding: int, starts: Tensor) -> Tensor:
    """From each sample with zeros around it, the window of its own size that starts at its row and column."""
    height, width = x.shape[-2:]
    every = F.pad(x, (padding,) * 4).unfold(-2, height, 1).unfold(-2, width, 1)  # a view: no window is copied but those taken
    return every.movedim((-4, -3), (1, 2))[torch.arange(len(x), device=x.device), starts[:, 0], starts[:, 1]]


def _between(positions: Tensor, start: Tensor, size: int) -> Tensor:
    return (positions >= start[:, None]) & (positions < start[:, None] + size)


def _boxed(split: Split) -> bool:
    return split.targets.ndim == 2


def _expect(holds: bool, owner: str, what: str, got: object) -> None:
    if not holds:
        raise OptionError(f"the augmentation {owner} expects {what}: got {got!r}")


_OPERATIONS: dict[str, Callable[..., Step]] = {"crop": crop, "flip": flip, "cutout": cutout, "colour": colour, "affine": affine}

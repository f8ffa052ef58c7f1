"""Samples brought to a number, a size, or a number of channels: the same result on every machine, nothing is drawn."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.data.augment import luma
from normsmith.data.dataset import Split
from normsmith.errors import InputError, OptionError

_CHANNELS = {"grey": 1, "rgb": 3, 1: 1, 3: 3}


def check_fit(options: dict[str, Any], owner: str) -> None:
    """Raise for values of the options that every set has, before anything is read."""
    for name in ("train", "test", "size"):
        value = options.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"{owner} expects {name} as a positive integer: got {value!r}")
    if options.get("channels", 1) not in _CHANNELS:
        raise OptionError(f"{owner} expects channels as grey, rgb, 1 or 3: got {options['channels']!r}")


def fitted(split: Split, options: dict[str, Any], title: str, owner: str) -> Split:
    """The split with as many samples as `options` have under its title, in their `size` and `channels`."""
    number = options.get(title)
    if number is not None:
        split = split.select(evenly(split.targets, number, f"{owner}: {title}"))
    inputs = split.inputs
    if "size" in options:
        inputs = resized(inputs, options["size"])
    if "channels" in options:
        inputs = in_channels(inputs, _CHANNELS[options["channels"]], owner)
    return split if inputs is split.inputs else Split(inputs, split.targets, split.names)


def evenly(labels: Tensor, number: int, owner: str) -> Tensor:
    """Places of `number` samples, each class with its share, evenly spaced within it; in their order."""
    if number > len(labels):
        raise OptionError(f"{owner} expects at most the {len(labels)} samples that are there: got {number}")
    if number == len(labels):
        return torch.arange(number)
    classes, counts = torch.unique(labels, return_counts=True)
    exact = counts.double() * number / len(labels)
    shares = exact.floor().long()
    missing = number - int(shares.sum())
    shares[(exact - shares).argsort(descending=True, stable=True)[:missing]] += 1  # the largest remainders
    chosen = []
    for label, share in zip(classes, shares.tolist(), strict=True):
        places = (labels == label).nonzero().flatten()
        chosen.append(places[torch.linspace(0, len(places) - 1, share, dtype=torch.float64).round().long()])
    return torch.cat(chosen).sort().values


def in_channels(inputs: Tensor, channels: int, owner: str) -> Tensor:
    """Grey as three equal channels, or red, green and blue as their grey."""
    have = inputs.shape[1]
    if have == channels:
        return inputs
    if {have, channels} != {1, 3}:
        raise InputError(f"{owner} is expected to have 1 or 3 channels to be brought to {channels}: got {have}")
    if channels == 3:
        return inputs.repeat_interleave(3, 1)
    if inputs.dtype == torch.float32:
        return luma(inputs)
    return torch.cat([luma(part.float()).round().to(torch.uint8) for part in torch.split(inputs, 1024)])  # never all as float


def resized(inputs: Tensor, size: int) -> Tensor:
    """Images whose shorter side becomes `size`, then the middle of the longer; bilinear, smoothed where it shrinks."""
    height, width = inputs.shape[-2:]
    if (height, width) == (size, size):
        return inputs
    scale = size / min(height, width)
    new = (max(size, round(height * scale)), max(size, round(width * scale)))
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    image = F.interpolate(inputs, size=new, mode="bilinear", antialias=True, align_corners=False)
    return image[..., top : top + size, left : left + size].contiguous()

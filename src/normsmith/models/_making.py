"""`make`: a network by name, for data of a kind, with the normalizers asked for."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from normsmith.errors import OptionError
from normsmith.models._blocks import Norm
from normsmith.models.catalog import parse
from normsmith.surgery.link import Kalman, link


def make(
    model: str, *, num_classes: int = 10, in_channels: int = 3, image_size: int | Sequence[int] = 32, norm: Norm = "batch"
) -> nn.Module:
    """A network by name, with options of its own as in "resnet20:norm_first=true,width=8", for data of this kind.

    `norm` is what `normsmith.make` takes, or None for a network without. `image_size` is the side of an image, or (..., H, W). What data
    are like goes to those networks that ask for it: a U-Net fits images of any size, a perceptron those of one, which are square. Kalman
    layers are linked in the order of the forward.
    """
    entry, options = parse(model)
    cls = entry.load()
    known = inspect.signature(cls).parameters
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)[-2:]
    if "image_size" in known and len(set(sides)) != 1:
        raise OptionError(f"{entry.name} expects square images: got image_size={image_size!r}; crop or scale them")
    data = {"num_classes": num_classes, "in_channels": in_channels, "image_size": sides[-1], "norm": norm}
    network: nn.Module = cls(**{**entry.options, **options, **{key: value for key, value in data.items() if key in known}})
    if any(isinstance(module, Kalman) for module in network.modules()):
        like = next(network.parameters())
        shape = entry.input_shape(2, in_channels=in_channels, image_size=sides[-1])
        link(network, torch.zeros(shape, device=like.device, dtype=like.dtype))
    return network

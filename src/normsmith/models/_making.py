"""`make`: a network by name, for data of a kind, with the normalizers asked for."""

import inspect

import torch
from torch import nn

from normsmith.methods.catalog import among, written
from normsmith.models._blocks import Norm
from normsmith.models.catalog import find
from normsmith.surgery.link import Kalman, link

_OF_THE_DATA = ("num_classes", "in_channels", "image_size", "norm")


def make(model: str, *, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, norm: Norm = "batch") -> nn.Module:
    """A network by name, with options of its own as in "resnet20:norm_first=true,width=8", for data of this kind.

    `norm` is what `normsmith.make` takes, or None for a network without. What data are like goes to those networks that ask for it: a
    residual network fits images of many sizes, a perceptron those of one. Kalman layers are linked in the order of the forward.
    """
    name, options = written(model)
    entry = find(name)
    cls = entry.load()
    known = list(inspect.signature(cls).parameters)
    among(options, [key for key in known if key not in _OF_THE_DATA], name)
    data = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size, "norm": norm}
    network: nn.Module = cls(**{**entry.options, **options, **{key: value for key, value in data.items() if key in known}})
    if any(isinstance(module, Kalman) for module in network.modules()):
        like = next(network.parameters())
        shape = entry.input_shape(2, in_channels=in_channels, image_size=image_size)
        link(network, torch.zeros(shape, device=like.device, dtype=like.dtype))
    return network

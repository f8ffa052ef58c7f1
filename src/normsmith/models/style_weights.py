"""`load_encoder`, `load_decoder`: published weights for style transfer, from a file that the user names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import ModelError
from normsmith.models.style_transfer import StyleDecoder, StyleEncoder, read

_DEPTHS, _WIDTH = (2, 2, 4), 64  # VGG-19 up to relu4_1
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights are for


def load_encoder(path: str | Path) -> StyleEncoder:
    """VGG-19 up to relu4_1 with the weights of a file: the state_dict of torchvision's `vgg19`, or the `vgg_normalised` of AdaIN's code.

    Weights are told by their order and shape, whatever their names; those of AdaIN begin with a 1×1 convolution of the colours. What the
    file has beyond relu4_1 is not used. Padding is by reflection for both, as in AdaIN's code.
    """
    what = "a state_dict of VGG-19, torchvision's or the normalised one of AdaIN's code"
    found = _tensors(path, what)
    encoder = StyleEncoder(_DEPTHS, width=_WIDTH)
    normalised = bool(found) and tuple(found[0].shape) == (3, 3, 1, 1)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    _fill(convolutions if normalised else convolutions[1:], found, path, what)
    if not normalised:
        encoder.see(_MEAN, _STD)
    return encoder.requires_grad_(False).eval()


def load_decoder(path: str | Path) -> StyleDecoder:
    """The decoder of AdaIN's code, which mirrors VGG-19, with the weights of a file."""
    what = "a state_dict of the decoder of AdaIN's code, which mirrors VGG-19 up to relu4_1"
    decoder = StyleDecoder(_DEPTHS, width=_WIDTH)
    found = _tensors(path, what)
    convolutions = [module for module in decoder if isinstance(module, nn.Conv2d)]
    _fill(convolutions, found, path, what)
    if len(found) > 2 * len(convolutions):
        raise ModelError(f"{path} is expected to be {what}: got {len(found)} tensors, not {2 * len(convolutions)}")
    return decoder


def _tensors(path: str | Path, what: str) -> list[Tensor]:
    """The tensors of a state_dict in their order."""
    found: Mapping[str, Any] = read(path, what)
    tensors = list(found.values())
    other = next((key for key, value in found.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise ModelError(f"{path} is expected to be {what}: got {other!r}, which is no tensor; save the state_dict alone")
    return tensors


@torch.no_grad()
def _fill(convolutions: list[nn.Conv2d], tensors: list[Tensor], path: str | Path, what: str) -> None:
    """Weight and bias of each convolution, in order."""
    slots = [slot for conv in convolutions for slot in (conv.weight, conv.bias) if slot is not None]
    for number, slot in enumerate(slots):
        got = f"shape {tuple(tensors[number].shape)}" if number < len(tensors) else "no more"
        if number >= len(tensors) or tensors[number].shape != slot.shape:
            raise ModelError(f"{path} is expected to be {what}, tensor {number + 1} of shape {tuple(slot.shape)}: got {got}")
        slot.copy_(tensors[number])

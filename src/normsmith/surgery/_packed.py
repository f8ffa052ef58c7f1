"""Convolutions that keep their weights in the layout in which oneDNN computes, instead of bringing them there at every call."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from normsmith.errors import DependencyError
from normsmith.surgery._constant import why_fixed
from normsmith.surroundings import must_stay_plain

Convolution = nn.Conv2d | nn.Conv3d


class _Packed:
    """What is packed of a weight, and the weight it was made of as that was then."""

    def __init__(self, weight: Tensor, packed: Tensor) -> None:
        self.made_of = (weight, weight._version, weight.data_ptr())
        self.packed = packed

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight still is what it was."""
        was, version, place = self.made_of
        return was is weight and version == weight._version and place == weight.data_ptr()


class _Packing(nn.Module):
    """A convolution with the parameters of another, packed anew whenever they have changed; as any other where gradients are wanted.

    It puts out channels_last, as torch's do whose weights are.
    """

    weight: Tensor
    bias: Tensor | None
    _packed: _Packed | None

    @classmethod
    def of(cls, convolution: nn.Module) -> "_Packing":
        """In the place of this one, with which it shares parameters and hooks."""
        made = cls.__new__(cls)
        made.__dict__.update(convolution.__dict__, _packed=None)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if not self._can_take(x):
            return cast(Tensor, super().forward(x))
        how = [self.padding, self.stride, self.dilation, self.groups]
        if self._packed is None or not self._packed.is_of(self.weight):
            weight = self.weight.detach()
            self._packed = _Packed(self.weight, torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape)))
        packed = self._packed.packed
        return cast(Tensor, torch.ops.mkldnn._convolution_pointwise(x, packed, self.bias, *how, "none", [], ""))

    def _can_take(self, x: Tensor) -> bool:
        given = [x, self.weight] if self.bias is None else [x, self.weight, self.bias]
        if must_stay_plain(tuple(given)) or x.dim() != self.weight.dim() or not x.numel():
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in given):
            return False
        if torch.is_autocast_enabled("cpu") or not torch._C._get_mkldnn_enabled() or self.weight.is_inference():
            return False
        return all(t.dtype == torch.float32 and t.device.type == "cpu" and not t.is_neg() for t in given)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a file: what is packed can be neither, and is made again."""
        return {**self.__dict__, "_packed": None}


class PackedConv2d(_Packing, nn.Conv2d):
    """An `nn.Conv2d`, packed."""


class PackedConv3d(_Packing, nn.Conv3d):
    """An `nn.Conv3d`, packed."""


_KINDS: dict[type[nn.Module], type[_Packing]] = {nn.Conv2d: PackedConv2d, nn.Conv3d: PackedConv3d}


def packing(layers: Iterable[nn.Module], held: dict[int, list[str]]) -> dict[nn.Module, nn.Module]:
    """What would stand for those of the layers that can be packed; `held` is `storages` of the model."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise DependencyError("pack=True expects a torch built with oneDNN: got one without; leave pack=False")
    return {layer: _KINDS[type(layer)].of(layer) for layer in layers if _is_packable(layer, held)}


def _is_packable(layer: nn.Module, held: dict[int, list[str]]) -> bool:
    if not isinstance(layer, Convolution) or type(layer) not in _KINDS or why_fixed(layer, held):
        return False
    weight = layer.weight
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and weight.dtype == torch.float32 and weight.device.type == "cpu"

"""Convolutions that keep their weights in the layout in which oneDNN computes, instead of bringing them there at every call."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from normsmith.errors import DependencyError
from normsmith.surgery._constant import TRANSPOSED, why_fixed
from normsmith.surroundings import must_stay_plain

Convolution = nn.Conv2d | nn.Conv3d


class _Packed:
    """What is packed of a weight, and the weight it was made of as that was then."""

    def __init__(self, weight: Tensor, packed: Tensor) -> None:
        # Its memory is held: freed, it could be that of the next weight, and nothing would tell the two apart.
        self.weight, self.version, self.memory = weight, weight._version, weight.untyped_storage()
        self.packed = packed

    def is_of(self, weight: Tensor) -> bool:
        """Whether the weight still is what it was."""
        same = self.weight is weight and self.version == weight._version
        return same and self.memory.data_ptr() == weight.untyped_storage().data_ptr()


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
            if torch.is_grad_enabled():
                self._packed = None  # an optimizer may follow, and fused ones change weights without torch's counting it
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
        return all(_is_plain(t) for t in given)

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a file: what is packed can be neither, and is made again."""
        return {**self.__dict__, "_packed": None}


class PackedConv2d(_Packing, nn.Conv2d):
    """An `nn.Conv2d`, packed."""


class PackedConv3d(_Packing, nn.Conv3d):
    """An `nn.Conv3d`, packed."""


_KINDS: dict[type[nn.Module], type[_Packing]] = {nn.Conv2d: PackedConv2d, nn.Conv3d: PackedConv3d}


def check_available() -> None:
    """Raise where nothing can be packed."""
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):  # type: ignore[no-untyped-call]
        raise DependencyError("pack=True expects a torch with oneDNN, switched on: got one without; leave pack=False")


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution that one could expect to be packed."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED))


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a packed convolution already."""
    return isinstance(module, _Packing)


def packing(layer: nn.Module, held: dict[int, list[str]]) -> nn.Module | str:
    """What would stand for a convolution, or why nothing can; `held` is `storages` of the model."""
    kind = _KINDS.get(type(layer))
    if kind is None:
        return f"is a {type(layer).__name__}, not an nn.Conv2d or nn.Conv3d itself"
    fixed = why_fixed(cast(Convolution, layer), held)
    if fixed:
        return fixed
    assert isinstance(layer, Convolution)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"pads by {layer.padding if layer.padding_mode == 'zeros' else layer.padding_mode!r}"
    return kind.of(layer) if _is_plain(layer.weight) else f"has a weight of {layer.weight.dtype} on {layer.weight.device}"


def _is_plain(tensor: Tensor) -> bool:
    usual = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.layout == torch.strided
    return usual and not tensor.is_neg()

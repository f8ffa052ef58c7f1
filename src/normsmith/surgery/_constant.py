"""Norms that evaluate to a constant affine map per channel, and layers that can take such a map into their weights."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normsmith.methods._base import Normalizer

# How far apart, in units of their size, two results of one computation in another order may be.
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # float32: TF32 included
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_weighted(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer, of torch's or a class made of it, without layers of its own inside."""
    return isinstance(module, Weighted) and not module._modules.keys() - {"parametrizations"}


def meddled(module: nn.Module) -> str:
    """What else happens where the module is called: hooks, or another forward put in its place; empty if nothing."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, kind, None) for kind in kinds):
        return "has hooks"
    return "has a forward of its own put in place" if "forward" in module.__dict__ else ""


def rest_of(norm: nn.Module) -> nn.Module:
    """What stays where a norm was: nothing, its own `act`, or the drop and activation that classes like timm's BatchNormAct2d hold."""
    own = norm.bend.module() if isinstance(norm, Normalizer) and norm.bend is not None else None
    inner = [own, *(norm._modules.get(key) for key in ("drop", "act"))]
    found = [module for module in inner if module is not None and not isinstance(module, nn.Identity)]
    return found[0] if len(found) == 1 else nn.Sequential(*found) if found else nn.Identity()


@dataclass(frozen=True, eq=False)
class Affine:
    """x * scale + shift with a number per channel, in float64 on the CPU, where every layer can be brought."""

    scale: Tensor
    shift: Tensor

    def after(self, layer: Weighted) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer with this map of its outputs."""
        weight, bias = _wide(layer.weight), _wide(layer.bias)
        if isinstance(layer, TRANSPOSED):  # (in, out / groups, ...), the groups along `in`
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            scaled = grouped * self.scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
            return scaled.flatten(0, 1), bias * self.scale + self.shift
        return weight * self.scale.view(-1, *[1] * (weight.dim() - 1)), bias * self.scale + self.shift

    def before(self, layer: Weighted) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer with this map of its inputs, for layers that pad nothing."""
        weight, bias = _wide(layer.weight), _wide(layer.bias)
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        grouped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        scale, shift = (t.view(groups, 1, -1, 1) for t in (self.scale, self.shift))
        return (grouped * scale).reshape(weight.shape), bias + (grouped * shift).sum((2, 3)).flatten()


def _wide(tensor: Tensor | None) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if tensor is None else tensor.detach().cpu().double()


def affine_of(norm: nn.Module, shape: torch.Size, dtype: torch.dtype) -> Affine | str:
    """The map that a norm is in evaluation, or why it is none.

    Whatever the class, its statistics, weight and bias say what the map would be; then the norm itself is asked, with numbers that are
    not what its input was: a norm that looks at its input, or bends it, answers otherwise.
    """
    mean, var, eps = (getattr(norm, key, None) for key in ("running_mean", "running_var", "eps"))
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or not isinstance(eps, float | int):
        return "it keeps no running statistics"
    weight, bias = (getattr(norm, key, None) for key in ("weight", "bias"))
    if len(shape) < 2 or any(t is not None and t.shape != shape[1:2] for t in (mean, var, weight, bias)):
        return "its evaluation is not one constant map per channel"
    deviation = (_wide(var) + eps).sqrt()
    scale = (1.0 if weight is None else _wide(weight)) / deviation
    affine = Affine(scale, _wide(bias) - _wide(mean) * scale)
    if not (affine.scale.isfinite().all() and affine.shift.isfinite().all()):
        return "its statistics are not finite"
    return (
        affine
        if _answers(norm, affine, shape, dtype, _wide(mean), deviation)
        else ("its evaluation is not one constant map per channel")
    )


def _answers(norm: nn.Module, affine: Affine, shape: torch.Size, dtype: torch.dtype, mean: Tensor, deviation: Tensor) -> bool:
    """Whether the norm does to numbers of three times the spread of its statistics what the map does."""
    across = (1, -1, *[1] * (len(shape) - 2))
    drawn = torch.randn((min(shape[0], 2), *shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    device = norm.running_mean.device if isinstance(norm.running_mean, Tensor) else None
    x = (drawn * 3 * deviation.view(across) + mean.view(across)).to(device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = norm.forward(x.clone())
        except Exception:  # noqa: BLE001  (whatever it wants besides numbers, it is no constant map)
            return False
    linear = _wide(x) * affine.scale.view(across)
    expected = rest_of(norm)((linear + affine.shift.view(across)).to(device=device, dtype=dtype))
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    size = linear.abs().amax() + affine.shift.abs().amax()
    return bool((_wide(found) - _wide(expected)).abs().amax() <= ROUNDING.get(dtype, 0) * size)


def why_fixed(layer: nn.Module, held: dict[int, list[str]]) -> str:
    """Why the weights of a layer cannot be changed for its own sake alone; empty if they can. `held` is `storages` of the model."""
    if parametrize.is_parametrized(layer):
        return "has a parametrised weight"
    weight, bias = (layer._parameters.get(key) for key in ("weight", "bias"))
    if weight is None or (bias is None and "bias" not in layer._parameters):
        return "has a weight that is not a parameter"
    if type(weight.data) is not Tensor or weight.dtype not in ROUNDING:
        return f"has a weight of {type(weight.data).__name__} in {weight.dtype}"
    if weight.is_inference():
        return "has a weight made in inference mode"
    for parameter in (weight, bias):
        holders = [] if parameter is None else held.get(parameter.untyped_storage().data_ptr(), [])
        if len(holders) > 1:
            return f"shares its weight ({', '.join(holders[:3])})"
    return meddled(layer)


def storages(model: nn.Module) -> dict[int, list[str]]:
    """The parameters and buffers that lie in each piece of memory; one that several modules hold counts for each."""
    found: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and type(tensor.data) is Tensor:
                found.setdefault(tensor.untyped_storage().data_ptr(), []).append(f"{prefix}.{key}" if prefix else key)
    return found

"""What the parameters of a model are, by the modules that hold them."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from normsmith.methods._kinds import kind_of

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Place(NamedTuple):
    """One place of a parameter: shared ones have several."""

    name: str
    parameter: nn.Parameter
    kind: str  # of a normalizer as in `_kinds.KINDS`, or biases, embeddings, weights
    module: nn.Module  # whose it is
    path: str  # the name of that module


def places_of(model: nn.Module) -> Iterator[Place]:
    """Every place of every parameter."""
    owners: dict[nn.Module, tuple[nn.Module, str, str]] = {}  # of a parametrization: what it stands for
    for path, module in model.named_modules():
        if is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for key, chain in module.parametrizations.items():
                owners |= dict.fromkeys(chain.modules(), (module, path, key))
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owner, where, role = owners.get(module, (module, path, key))
                yield Place(f"{path}.{key}" if path else key, parameter, _kind(owner, role, parameter), owner, where)


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> str:
    known = kind_of(module, name)
    if known is not None:
        return known
    if isinstance(module, _NORMS) or ("Norm" in type(module).__name__ and parameter.dim() <= 1):
        return "affine"
    if name == "bias" or name.startswith("bias_") or name.endswith("_bias"):  # those of recurrent layers and of attention
        return "biases"
    if isinstance(module, nn.PReLU):
        return "slopes"
    return "embeddings" if isinstance(module, nn.Embedding | nn.EmbeddingBag) else "weights"

"""`freeze` and `unfreeze`: running statistics as constants, whatever `model.train()` says."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normsmith.errors import ModelError
from normsmith.methods._running import RunningNormalizer
from normsmith.surgery._choice import Where
from normsmith.surgery._parameters import places_of
from normsmith.surgery._statistics import Keeper, keepers, norms_of
from normsmith.surgery.convert import convert


def freeze(model: nn.Module, *, where: Where | None = None, affine: bool = False) -> list[str]:
    """Make the running statistics of `model` constants that `model.train()` cannot thaw, and return the names of the layers.

    `where(module, name)` selects layers. `affine=True` stops the gradients of their weight and bias too. The flag is part of the state
    dict. torch's own layers have no such state: they become our `BatchNorm` and `InstanceNorm` in place, with the same parameters, so that
    an optimizer stays valid, and the same keys in the state dict beside `frozen`.
    """
    layers = keepers(model, where, "freeze")
    foreign: dict[Keeper, str] = {layer: name for layer, name in layers.items() if not isinstance(layer, RunningNormalizer)}
    if foreign:
        _make_ours(model, foreign)
    return _set(model, list(layers.values()), True, affine)


def _make_ours(model: nn.Module, foreign: dict[Keeper, str]) -> None:
    if any(layer is model for layer in foreign):
        raise ModelError(
            f"freeze expects torch's layers inside a model, where ours can take their place: got a {type(model).__name__} itself; "
            "wrap it in nn.Sequential"
        )
    conversion = convert(model, {_InstanceNorm: "instance", _NormBase: "batch"}, where=lambda layer, _: layer in foreign)
    for layer, name in foreign.items():
        if not _ours(model, name):
            conversion.undo()
            why = next((row.reason for row in conversion.rows if row.layer == name), "it was left as it is")
            raise ModelError(
                f"freeze expects layers that convert can make ours: got {name!r}, a {type(layer).__name__}: {why}; leave it out in where"
            )


def unfreeze(model: nn.Module, *, where: Where | None = None, affine: bool = False) -> list[str]:
    """Let running statistics move again in training, and with `affine=True` weight and bias too; return the names of the layers."""
    layers = keepers(model, where, "unfreeze")
    names = [name for layer, name in layers.items() if isinstance(layer, RunningNormalizer)]
    if not names:
        raise ModelError(f"unfreeze expects layers of normsmith, which alone can be frozen: got {norms_of(model)}")
    return _set(model, names, False, affine)


def _set(model: nn.Module, names: list[str], frozen: bool, affine: bool) -> list[str]:
    layers = {layer for name in names for layer in _ours(model, name)}
    for layer in layers:
        layer.frozen = frozen
    if affine:
        for place in places_of(model):
            if place.module in layers and place.kind in {"affine", "maps"}:
                place.parameter.requires_grad_(not frozen)
    return names


def _ours(model: nn.Module, name: str) -> list[RunningNormalizer]:
    """The layer of that name, or what a successor with an activation has inside."""
    return [module for module in model.get_submodule(name).modules() if isinstance(module, RunningNormalizer)]

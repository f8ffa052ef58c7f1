"""What a layer of anyone's model computes, in the terms of the catalog: known by its type, or by its behaviour."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from normsmith.methods._base import Normalizer
from normsmith.methods._running import BUFFERS
from normsmith.methods.catalog import CATALOG
from normsmith.recurrent.step_batch import StepBatchNorm
from normsmith.surgery import _probe
from normsmith.surgery._source import NotUnderstoodError, Source, is_norm, tensors
from normsmith.surgery.adapted import Adapted


def recognise(module: nn.Module) -> Source | None:
    """What a module computes, None if it is no normalizer; raises `NotUnderstoodError` with the reason if it seems to be one."""
    kind: Any = parametrize.type_before_parametrizations(module)
    if isinstance(module, Adapted):
        inner = recognise(module.norm)
        if inner is None:
            return None
        if inner.act is not None and (module.drop is not None or module.act is not None):
            raise NotUnderstoodError("its norm goes through an activation of its own before what stands behind it")
        act = module.act if inner.act is None else inner.act
        return replace(inner, channels_last=module.channels_last or inner.channels_last, drop=module.drop, act=act)
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params() and hasattr(module, "num_features"):
        raise NotUnderstoodError("its number of channels is not known before the model has run; run it once on a batch")
    if isinstance(module, StepBatchNorm):
        return _steps(module)
    if issubclass(kind, Normalizer):
        return _ours(module, kind)
    for base, read in _TORCH.items():
        if kind is base or (issubclass(kind, base) and kind.forward is base.forward and not module._modules):
            return read(module)
    return _probe.recognise(module, kind) if is_norm(module) else None


def _ours(module: nn.Module, kind: type[nn.Module]) -> Source:
    entry = next((entry for entry in CATALOG.values() if entry.class_name == kind.__name__ and entry.load() is kind), None)
    if entry is None:
        raise NotUnderstoodError(f"{kind.__name__} is a normalizer of ours that is changed or not in the catalog")
    if _needs_more(kind):
        raise NotUnderstoodError(f"{kind.__name__} takes a second input, which no other layer would")
    assert isinstance(module, Normalizer)
    size, last = module.num_features, isinstance(module.num_features, tuple) and len(module.num_features) == 1
    options = {key: value for key, value in module.options().items() if key != "act"}
    act = None if module.bend is None else module.bend.module()
    return Source(entry.name, size[0] if last else size, options, tensors(module), channels_last=last, act=act)  # type: ignore[index]


def _steps(module: StepBatchNorm) -> Source:
    """Batch norm in a recurrent layer, without what no other layer has."""
    options = {key: value for key, value in module.options().items() if key not in {"max_steps", "bias"}}
    statistics = tuple(key for key in BUFFERS if module._buffers[key] is not None)
    held = {key: tensor for key, tensor in tensors(module).items() if key not in statistics}
    return Source("batch", module.num_features, options, held, beyond=statistics)


def _needs_more(kind: type[nn.Module]) -> bool:
    return kind.example_inputs is not Normalizer.example_inputs  # type: ignore[attr-defined]


def _batch(module: Any, method: str = "batch") -> Source:
    options = {key: getattr(module, key) for key in ("eps", "momentum", "affine", "track_running_stats")}
    beyond = ("process_group: call ns.synchronize",) if isinstance(module, nn.SyncBatchNorm) else ()
    return Source(method, module.num_features, options, tensors(module), beyond=beyond)


def _group(module: Any) -> Source:
    options = {"num_groups": module.num_groups, "eps": module.eps, "affine": module.affine}
    return Source("group", module.num_channels, options, tensors(module))


def _trailing(module: Any, method: str) -> Source:
    shape = tuple(module.normalized_shape)
    options = {"eps": module.eps, "affine": module.elementwise_affine}
    if method == "layer" and module.elementwise_affine and module.bias is None:
        options["bias"] = False
    if len(shape) == 1:
        return Source(method, shape[0], options, tensors(module), channels_last=True)
    return Source(method, shape, options, tensors(module))


def _response(module: Any) -> Source:
    raise NotUnderstoodError("it holds no number of channels; give one with ns.make and replace it by hand")


_instance = functools.partial(_batch, method="instance")
_TORCH: dict[type[nn.Module], Callable[[Any], Source]] = {
    nn.BatchNorm1d: _batch,
    nn.BatchNorm2d: _batch,
    nn.BatchNorm3d: _batch,
    nn.SyncBatchNorm: _batch,
    nn.InstanceNorm1d: _instance,
    nn.InstanceNorm2d: _instance,
    nn.InstanceNorm3d: _instance,
    nn.GroupNorm: _group,
    nn.LayerNorm: functools.partial(_trailing, method="layer"),
    nn.RMSNorm: functools.partial(_trailing, method="rms"),
    nn.LocalResponseNorm: _response,
}

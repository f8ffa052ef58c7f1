"""Layers of other libraries, recognised by what they compute: a candidate of ours must give the same numbers on random data.

By names alone a layer with another formula (Gemma's RMS norm multiplies by 1 + weight) would be converted to something it is not.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import NormsmithError
from normsmith.methods.catalog import find
from normsmith.surgery._source import NotUnderstoodError, Source, tensors
from normsmith.surgery.adapted import Adapted

_NAMES = {"gamma": "weight", "scale": "weight", "g": "weight", "beta": "bias"}
_KNOWN = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_DROPS, _ACTS = ("drop", "dropout"), ("act", "activation", "act_fn")
_CLOSE = 1e-4  # of float32 numbers around one, where formulas that differ at all differ by far more


def recognise(module: nn.Module, kind: type[nn.Module]) -> Source:
    """The method of the catalog that the layer computes, proven on random data."""
    if any(type(hook).__name__ in {"WeightNorm", "SpectralNorm"} for hook in module._forward_pre_hooks.values()):
        raise NotUnderstoodError(
            "its weight is made by a hook of torch's old weight_norm or spectral_norm; use torch.nn.utils.parametrizations"
        )
    drop, act = _child(module, _DROPS), _child(module, _ACTS)
    strange = [name for name in module._modules if name not in (*_DROPS, *_ACTS)]
    named = {_NAMES.get(key, key): t for key, t in tensors(module).items()}
    unknown = named.keys() - _KNOWN
    if strange or unknown:
        raise NotUnderstoodError(f"{kind.__name__} holds {', '.join(sorted([*strange, *unknown]))}, whose meaning is not known")
    size = _features(module, named)
    twin = _twin(module)
    for method, options, channels_last in _candidates(module, named):
        source = Source(method, size, options, named, channels_last, drop, act)
        if _same(twin, source, modes=(False, True) if "running_mean" in named else (False,)):
            return source
    raise NotUnderstoodError(
        f"{kind.__name__} computes something else than the methods of the catalog would with its parameters"
    )


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    child = next((module._modules[name] for name in names if module._modules.get(name) is not None), None)
    return None if isinstance(child, nn.Identity) else child


def _features(module: Any, named: dict[str, Tensor]) -> int:
    for t in named.values():
        if t.dim() == 1:
            return t.numel()
    for key in ("num_features", "num_channels", "normalized_shape", "dim", "hidden_size"):
        value = getattr(module, key, None)
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int):
            return value
    raise NotUnderstoodError("its number of channels cannot be told from its parameters or attributes")


def _candidates(module: Any, named: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Method, options, and whether channels come last, the likeliest first."""
    eps = next((getattr(module, key) for key in ("eps", "epsilon", "variance_epsilon") if hasattr(module, key)), 1e-5)
    common: dict[str, Any] = {"eps": float(eps), "affine": "weight" in named}
    if "running_mean" in named:
        options = {**common, "momentum": getattr(module, "momentum", 0.1), "track_running_stats": True}
        for method in ("batch", "frozen", "instance"):
            yield method, options, False
        return
    if isinstance(getattr(module, "num_groups", None), int):
        yield "group", {**common, "num_groups": module.num_groups}, False
        return
    for last in (True, False):
        yield "rms" if last else "position", common if last else {**common, "centered": False}, last
        if "bias" in named or not common["affine"]:
            yield "layer" if last else "position", common, last
        elif last:
            yield "layer", {**common, "bias": False}, last
    yield "instance", common, False
    yield "group", {**common, "num_groups": 1}, False


def _twin(module: nn.Module) -> nn.Module:
    """The layer without its hooks and dropout, in float32 on the CPU, with random parameters in the place of its own."""
    twin = copy.copy(module)
    generator = torch.Generator().manual_seed(0)

    def shaken(t: Tensor, key: str) -> Tensor:
        if not t.is_floating_point():
            return t.detach().cpu().clone()
        return (
            0.5 + torch.rand(t.shape, generator=generator)
            if key not in {"bias", "beta"}
            else torch.randn(t.shape, generator=generator)
        )

    state: dict[str, Any] = dict(module.__dict__)
    for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        state[key] = OrderedDict()
    state["_parameters"] = {
        key: None if t is None else nn.Parameter(shaken(t, key), requires_grad=False) for key, t in module._parameters.items()
    }
    state["_buffers"] = {key: None if t is None else shaken(t, key) for key, t in module._buffers.items()}
    state["_modules"] = {
        key: nn.Identity() if key in _DROPS and child is not None else child for key, child in module._modules.items()
    }
    twin.__dict__ = state
    return twin


def _same(twin: nn.Module, source: Source, modes: tuple[bool, ...]) -> bool:
    """Whether a layer of ours, with the same parameters, gives the same numbers on one kind of input that both accept."""
    ours = replica(source, {_NAMES.get(key, key): t for key, t in tensors(twin).items()})
    before = {key: t.clone() for key, t in twin._buffers.items() if t is not None}
    agreed = False
    with torch.no_grad():
        for training in modes:
            for x in _inputs(source):
                twin.training = training
                ours.train(training)
                try:
                    expected = twin(x.clone())
                    actual = ours(x.clone())
                except NormsmithError:
                    return False
                except Exception:  # noqa: BLE001  (a foreign layer refuses an input as it likes)
                    continue
                finally:
                    for key, t in before.items():
                        twin._buffers[key] = t.clone()
                if not isinstance(expected, Tensor) or expected.shape != actual.shape:
                    return False
                if not torch.allclose(expected.float(), actual, rtol=_CLOSE, atol=_CLOSE):
                    return False
                agreed = True
                break
    return agreed


def replica(source: Source, values: dict[str, Tensor]) -> nn.Module:
    """A layer of ours with the source's method and options, and copies of the values."""
    cls = find(source.method).load()
    trailing = source.channels_last and cls.takes_shape
    layer = cls((source.num_features,) if trailing else source.num_features, **source.options)
    with torch.no_grad():
        for key, t in layer.state_dict().items():
            if key in values:
                t.copy_(values[key])
    return Adapted(layer, channels_last=source.channels_last and not trailing, act=source.act)


def _inputs(source: Source) -> Iterator[Tensor]:
    assert isinstance(source.num_features, int)
    channels, generator = source.num_features, torch.Generator().manual_seed(1)
    first, second = [size for size in (3, 4, 5) if size != channels][:2]  # no size that could be taken for the channels
    shapes = (
        [(second, first, channels)]
        if source.channels_last
        else [
            (second, channels, first, 2),
            (second, channels, first),
            (second, channels, 2, first, 2),
            (second + first, channels),
        ]
    )
    for shape in shapes:
        yield 1.5 * torch.randn(shape, generator=generator) + 0.3

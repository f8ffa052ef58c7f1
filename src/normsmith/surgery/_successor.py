"""The layer that takes another's place: built with its options, holding its very parameters, buffers and hooks."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normsmith.activation import Activation
from normsmith.errors import NormsmithError, OptionError
from normsmith.methods._base import Normalizer
from normsmith.methods._running import BUFFERS, RunningNormalizer
from normsmith.methods.catalog import find, parse
from normsmith.methods.context import ContextNorm
from normsmith.methods.group import choose_groups
from normsmith.surgery._source import NotUnderstoodError, Source, dtype_and_device
from normsmith.surgery.adapted import Adapted

Target = str | type[nn.Module] | Callable[..., nn.Module]
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_TORCH = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# What both must have for the number to mean the same in both; eps and momentum do everywhere.
_SHARED = ("eps", "momentum", "num_groups", "accumulate", "nonfinite", "on_single", "process_group")
_AT_REST: dict[str, Any] = {"eps": 1e-5, "momentum": 0.1, "num_groups": None, "frozen": False}


@dataclass(frozen=True, eq=False)
class Successor:
    """A new layer, what it has of the old one, what of that found no place, and what is new in it."""

    layer: nn.Module  # what takes the old one's place
    norm: nn.Module  # the normalizer in it: `layer` itself unless that is an adapter
    carried: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]


def check_target(target: Target | None) -> None:
    """Raise for a target that can work for no layer at all."""
    if isinstance(target, str):
        cls = parse(target)[0].load()
        if cls.example_inputs is not Normalizer.example_inputs and cls.condition_name is None:
            raise OptionError(
                f"convert expects a method that takes one input: got {target!r}, which needs a second one; place it by hand"
            )
    elif isinstance(target, type) and target.__module__.startswith("torch.nn") and not issubclass(target, _TORCH):
        raise OptionError(f"convert expects a normalizer of torch.nn, if a class of it: got {target.__name__}")
    elif target is not None and not callable(target):
        raise OptionError(f"convert expects a catalog name, a class, a factory or None: got {target!r}")


def succeed(old: nn.Module, source: Source, target: Target, near: Tensor | None) -> Successor:
    """The successor of a layer; nothing of the old one is changed. `near` lends type and device to a layer without tensors."""
    options, where = _wanted(source, target), dtype_and_device(source)
    dtype, device = where or ((near.dtype, near.device) if near is not None else (None, None))
    norm, trailing = _build(source, target, options)
    norm.to(device=device, dtype=dtype)
    condition = getattr(norm, "condition_name", None)
    if condition is not None and parametrize.is_parametrized(old):
        raise NotUnderstoodError(f"it is parametrized, for one weight, not for one by {condition}")
    carried = [_take(norm, key, t) for key, t in source.tensors.items()]
    got = {key for key in carried if key is not None} | _take_as_tables(norm, source)
    _take_parametrizations(norm, old, got)
    kept = [t.requires_grad for t in source.tensors.values() if isinstance(t, nn.Parameter)]
    if kept and not any(kept):  # what was kept from training stays so as a whole
        norm.requires_grad_(False)
    norm.train(old.training)
    replaced = isinstance(norm, Normalizer) and norm.bend is not None  # by one that the target names
    act = None if replaced or _takes_activation(norm, source) else source.act
    plain = (source.channels_last and not trailing, source.drop, act)
    layer = Adapted(norm, channels_last=plain[0], drop=plain[1], act=act) if any(plain) else norm
    layer.training = old.training
    hooks = [key for key in HOOKS if getattr(old, key)]
    for key in hooks:
        setattr(layer, key, getattr(old, key))  # the same dictionary: a handle's remove() works on both
    layer._is_full_backward_hook = old._is_full_backward_hook
    lost = {key: value for key, value in _options_of_note(source).items() if not _has_option(norm, key, value)}
    there = {"dropout": source.drop, "activation": None if replaced else source.act, "hooks": hooks}
    extra = [name for name, value in there.items() if value]
    held = [key for key, t in (*norm._parameters.items(), *norm._buffers.items()) if t is not None]
    return Successor(
        layer,
        norm,
        carried=(*(key for key in source.tensors if key in got), *_kept_options(norm, source, lost), *extra),
        dropped=(
            *(key for key in source.tensors if key not in got),
            *(f"{key}={value}" for key, value in lost.items()),
            *(("activation",) if replaced and source.act is not None else ()),
            *source.beyond,
        ),
        fresh=(
            *(name for name in held if name not in got),
            *([] if condition is None else [f"a {condition} that ns.conditioned gives"]),
        ),
    )


def _takes_activation(norm: nn.Module, source: Source) -> bool:
    """Make the source's activation a part of the new layer, if it is one that a layer of ours can have, and nothing stands between."""
    act = Activation.of(source.act)
    if act is None or source.drop is not None or not isinstance(norm, Normalizer) or norm.activates:
        return False
    assert source.act is not None
    if any(getattr(source.act, key) for key in HOOKS) or "forward" in source.act.__dict__:
        return False
    norm.end_in(act)
    return True


def _wanted(source: Source, target: Target) -> dict[str, Any]:
    """The source's options that mean the same in the target."""
    own = dict(source.options)
    # None says "not asked for", but for momentum, where it is the plain average.
    wanted = {key: own[key] for key in _SHARED if key in own and (own[key] is not None or key == "momentum")}
    wanted["affine"] = "weight" in source.tensors
    if own.get("bias") is False and "weight" in source.tensors:
        wanted["bias"] = False
    if isinstance(target, str) and parse(target)[0].name == source.method:
        return {**own, **wanted}
    # Whether statistics are kept is a choice only where the source's method has the target's default.
    wanted["track_running_stats"] = own.get("track_running_stats", True)
    return wanted


def _build(source: Source, target: Target, wanted: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The new normalizer, and whether it acts on trailing dimensions itself."""
    make: Callable[..., Any]
    given: dict[str, Any] = {}
    if isinstance(target, str):
        entry, given = parse(target)
        make = entry.load()
    else:
        make = target
    if isinstance(make, type) and make.__module__.startswith("torch.nn"):
        return _build_torch(source, make, wanted)
    takes_shape = isinstance(make, type) and issubclass(make, Normalizer) and make.takes_shape
    trailing = takes_shape and (source.channels_last or isinstance(source.num_features, tuple))
    if isinstance(source.num_features, tuple) and not trailing:
        raise NotUnderstoodError(f"it acts on the trailing dimensions {source.num_features}; only layer and rms norm can")
    size = (source.num_features,) if trailing and isinstance(source.num_features, int) else source.num_features
    try:
        layer = make(size, **given, **_accepted(make, source, wanted, given))
    except NormsmithError as error:
        raise NotUnderstoodError(str(error)) from None
    except TypeError as error:
        raise OptionError(f"convert expects a factory that takes the number of channels: got {make!r}, and {error}") from error
    if not isinstance(layer, nn.Module):
        raise OptionError(f"convert expects a factory of modules: got {type(layer).__name__} from {target!r}")
    return layer, trailing


def _accepted(make: Callable[..., Any], source: Source, wanted: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The wanted options that a constructor has, without those that were given."""
    bound = make.keywords if isinstance(make, functools.partial) else {}
    parameters = inspect.signature(make).parameters
    accepted = {k: v for k, v in wanted.items() if k in parameters and k not in given and k not in bound}
    if isinstance(make, type) and issubclass(make, Normalizer):
        accepted = {k: v for k, v in accepted.items() if k not in make.without_meaning(given)}
    if "track_running_stats" in accepted:
        default = inspect.signature(find(source.method).load()).parameters.get("track_running_stats")
        if default is None or default.default != parameters["track_running_stats"].default:
            del accepted["track_running_stats"]
    return accepted


def _build_torch(source: Source, cls: type[nn.Module], wanted: dict[str, Any]) -> tuple[nn.Module, bool]:
    """A layer of torch.nn, whose constructors differ."""
    trailing = issubclass(cls, nn.LayerNorm | nn.RMSNorm)
    if isinstance(source.num_features, tuple) and not trailing:
        raise NotUnderstoodError(f"it acts on the trailing dimensions {source.num_features}; only layer and rms norm can")
    if trailing and isinstance(source.num_features, int) and not source.channels_last:
        raise NotUnderstoodError(f"its channels are in dimension 1, where torch's {cls.__name__} does not look; use ours")
    if issubclass(cls, nn.GroupNorm):
        assert isinstance(source.num_features, int)
        groups = wanted.get("num_groups") or choose_groups(source.num_features, "auto")
        return cls(
            groups, source.num_features, **_accepted(cls, source, {**wanted, "num_groups": None}, {"num_groups": groups})
        ), False
    renamed = {**wanted, "elementwise_affine": wanted["affine"]}
    return cls(source.num_features, **_accepted(cls, source, renamed, {})), trailing


def _take(norm: nn.Module, key: str, tensor: Tensor) -> str | None:
    """Put a tensor of the old layer in its place in the new one, if there is one; returns its name then."""
    if isinstance(norm, RunningNormalizer) and key in BUFFERS[:2]:
        tensor = norm.part_of(tensor)
    own = norm._parameters.get(key)
    if own is not None and own.shape == tensor.shape:
        norm._parameters[key] = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)
        )
        return key
    buffer = norm._buffers.get(key)
    if buffer is not None and buffer.shape == tensor.shape:
        norm._buffers[key] = tensor.detach() if tensor.requires_grad else tensor
        return key
    table = own if own is not None else buffer
    if getattr(norm, "condition_name", None) is not None and table is not None and table.shape[1:] == tensor.shape:
        with torch.no_grad():
            table.copy_(tensor)  # every condition starts with what there was for all
        if own is not None:
            own.requires_grad_(tensor.requires_grad)
        return key
    return None


def _take_as_tables(norm: nn.Module, source: Source) -> set[str]:
    """Give a layer with learned tables the running statistics to start from; the names of what is then no loss, and not new."""
    mean, var = (source.tensors.get(key) for key in BUFFERS[:2])
    if not isinstance(norm, ContextNorm) or norm.context_mean is None or mean is None or var is None:
        return set()
    norm.start_from(mean, (var.double() + (source.options.get("eps") or 0.0)).sqrt())
    return {"running_mean", "running_var", "context_mean", "context_log_std"}


def _take_parametrizations(norm: nn.Module, old: nn.Module, got: set[str]) -> None:
    """Parametrize the new layer's tensors as the old one's were, with the same originals."""
    if not parametrize.is_parametrized(old):
        return
    for key, parts in old.parametrizations.items():  # type: ignore[operator, union-attr]
        if key not in got:
            continue
        for part in parts:
            parametrize.register_parametrization(norm, key, part, unsafe=True)
        for original, tensor in parts._parameters.items():
            norm.parametrizations[key]._parameters[original] = tensor  # type: ignore[index, union-attr]


def _options_of_note(source: Source) -> dict[str, Any]:
    """The options whose loss changes what the layer does: those that are not everybody's default."""
    return {
        key: source.options[key]
        for key in ("eps", "momentum", "num_groups", "frozen")
        if key in source.options and source.options[key] != _AT_REST[key]
    }


def _has_option(norm: nn.Module, key: str, value: Any) -> bool:
    return bool(getattr(norm, key, _AT_REST[key]) == value)


def _kept_options(norm: nn.Module, source: Source, lost: dict[str, Any]) -> list[str]:
    return [
        key for key in ("eps", "momentum", "num_groups") if key in source.options and key not in lost and hasattr(norm, key)
    ]

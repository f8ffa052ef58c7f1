"""`load_bridged`: a checkpoint of one kind of normalizers into a model with another."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from normsmith.errors import InputError
from normsmith.methods.conditional import ConditionalNorm
from normsmith.methods.context import ContextNorm
from normsmith.methods.ibn import IBN
from normsmith.methods.switchable import SwitchableNorm
from normsmith.surgery._checkpoints import read_state
from normsmith.surgery._console import as_text
from normsmith.surgery._models import refuse_wrapped
from normsmith.surgery._source import is_norm
from normsmith.surgery.place_ibn import AFTER_ADDITION

_NAMED = re.compile(r"(bn|sn|gn|norm)(\d*)")
_LOGITS = ("mean_weight", "var_weight")


@dataclass(frozen=True)
class BridgedLayer:
    """What one normalizer got."""

    name: str
    kind: str
    source: str  # the name that it has in the checkpoint
    loaded: tuple[str, ...]
    initial: tuple[str, ...]  # its own, which the checkpoint does not have
    dropped: tuple[str, ...]  # the checkpoint's, which it has no place for
    changed: tuple[str, ...]  # options that were set, so that it computes what the checkpoint's layer did


@dataclass(frozen=True)
class Bridge:
    """What `load_bridged` did; as a string a table of the normalizers."""

    layers: tuple[BridgedLayer, ...]
    others: dict[str, str]  # what is no normalizer's: name in the model -> name in the checkpoint
    missing: tuple[str, ...] = ()  # only with strict=False
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False)
        for heading in ("layer", "from", "loaded", "at its initial value", "dropped", "set"):
            table.add_column(heading, overflow="fold")
        for layer in self.layers:
            cells = (layer.loaded, layer.initial, layer.dropped, layer.changed)
            table.add_row(f"{layer.name} ({layer.kind})", layer.source or "-", *(", ".join(cell) or "-" for cell in cells))
        left = [
            f"{what}: {', '.join(keys)}" for what, keys in (("missing", self.missing), ("unexpected", self.unexpected)) if keys
        ]
        return "\n".join([as_text(table), f"and {len(self.others)} tensors of other layers", *left])


@dataclass
class _Found:
    """What is known of a layer of the model while its keys are matched."""

    module: nn.Module
    sources: dict[str, str] = field(default_factory=dict)  # its tensor -> the checkpoint's key
    initial: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def load_bridged(model: nn.Module, state: Mapping[str, Any] | str | Path, *, strict: bool = True) -> Bridge:
    """Load a checkpoint whose normalizers are of another kind than those of `model`, and return what went where.

    `state` is a state dict, or the path of one saved by `torch.save` (read with weights_only=True) or as safetensors; prefixes of
    DataParallel and torch.compile are taken off. Whatever has the same name and shape is loaded as it is. For normalizers besides:

    - weight, bias and running statistics go where they fit, to `ns.IBN` those of its batch channels, to `ns.ConditionalNorm` and
      `ns.ContextNorm` as every condition's. What the layer has of its own stays as it is; what it has no place for is left out; both are
      listed.
    - Frozen batch norm of torchvision and detectron2, and checkpoints from before torch 0.4.1, have no `num_batches_tracked`.
    - A layer that is wrapped in the model, or in the checkpoint, in a module that calls it `norm` has that name left out; `sn1`, `bn1`,
      `gn1` and `norm1` are the same name where only one of them is there.
    - The weights of the authors of switchable norm are brought to our shapes, and `ns.SwitchableNorm` gets `unbiased=True`, their eps, and
      their momentum as the weight of the new batch: 0.1 for images, 0.003 for the rest, what they publish (it is not in the file).
      It then gives their outputs. A checkpoint of their "batch average" holds sums, which their code too never divides: recalibrate.

    - The weights of the authors of IBN-Net, two layers `IN` and `BN` for each `ns.IBN` and `IN` behind an addition, go where
      `ns.place_ibn` has put its layers.

    Tensors of other shapes are an error, and the model is untouched. So are, with `strict`, tensors of other layers that only one side
    has, and normalizers for which there is nothing.
    """
    refuse_wrapped(model, "load_bridged")
    given, own = read_state(state), model.state_dict()
    layers = {name: _Found(module) for name, module in model.named_modules(remove_duplicate=False) if is_norm(module)}
    others, missing, unmatched = _matched(own, given, layers)
    unexpected = _left_over(unmatched, layers)
    missing += [f"{name}.*" for name, layer in layers.items() if layer.initial and not layer.sources]
    new = _fitted(own, given, layers, others)
    if strict and (missing or unexpected):
        said = [
            f"{_some(keys)} {what}"
            for keys, what in ((missing, "missing"), (unexpected, "for which there is no place"))
            if keys
        ]
        raise InputError(
            f"load_bridged expects a checkpoint of this model but for its normalizers: got {' and '.join(said)}; say strict=False to "
            "load the rest"
        )
    model.load_state_dict({**own, **new})
    done = tuple(_finished(name, layer, given) for name, layer in layers.items())
    return Bridge(done, others, tuple(missing), tuple(unexpected))


def _matched(
    own: dict[str, Tensor], given: dict[str, Tensor], layers: dict[str, _Found]
) -> tuple[dict[str, str], list[str], set[str]]:
    """Where the tensors of other layers come from, which of them are missing, and the keys that nothing takes; notes those of layers."""
    others: dict[str, str] = {}
    missing: list[str] = []
    taken = own.keys() & given.keys()
    for key in own:
        name, _, tensor = key.rpartition(".")
        source = key if key in given else next((c for c in _aliases(key) if c in given and c not in taken), None)
        layer = layers.get(name)
        if source is not None:
            taken = taken | {source}
            (others if layer is None else layer.sources)[key if layer is None else tensor] = source
        elif layer is not None:
            layer.initial.append(tensor)
        elif f"{name}.norm" not in layers:  # not a wrapper's own
            missing.append(key)
    return others, missing, given.keys() - taken


def _aliases(key: str) -> Iterator[str]:
    """Other names that a tensor of the model may have in a checkpoint."""
    *path, tensor = key.split(".")
    for i in reversed(range(len(path))):
        if path[i] == "norm" and i > 0:
            yield ".".join([*path[:i], *path[i + 1 :], tensor])
    yield ".".join([*path, "norm", tensor])
    if path and path[-1] == AFTER_ADDITION:
        yield ".".join([*path[:-1], "IN", tensor])  # what the authors of IBN-Net call it
    named = _NAMED.fullmatch(path[-1]) if path else None
    if named:
        for stem in ("bn", "sn", "gn", "norm"):
            yield ".".join([*path[:-1], stem + named[2], tensor])


def _left_over(keys: set[str], layers: dict[str, _Found]) -> list[str]:
    """The keys that belong to no layer; those of a layer that was found are noted there as dropped."""
    sources = {source.rpartition(".")[0]: layer for layer in layers.values() for source in layer.sources.values()}
    homes = {**layers, **sources}
    unexpected = []
    for key in sorted(keys):
        name, _, tensor = key.rpartition(".")
        if name in homes and tensor != "frozen":
            homes[name].dropped.append(tensor)
        elif name not in homes:
            unexpected.append(key)
    return unexpected


def _fitted(
    own: dict[str, Tensor], given: dict[str, Tensor], layers: dict[str, _Found], others: dict[str, str]
) -> dict[str, Tensor]:
    """What to load, or an error that lists all tensors that do not fit."""
    new: dict[str, Tensor] = {}
    wrong = []
    pairs: list[tuple[str, str, nn.Module | None]] = [(key, source, None) for key, source in others.items()]
    pairs += [
        (f"{name}.{t}" if name else t, s, layer.module) for name, layer in layers.items() for t, s in layer.sources.items()
    ]
    for key, source, module in pairs:
        value = given[source] if module is None else _shaped(given[source], own[key], module)
        if value.shape != own[key].shape or not _same_parts(module, key, given, source):
            wrong.append(f"{source} {tuple(given[source].shape)} for {key} {tuple(own[key].shape)}")
        new[key] = value
    if wrong:
        raise InputError(
            f"load_bridged expects tensors of the model's shapes: got {_some(wrong)}; build the model as that of the checkpoint"
        )
    for name, layer in layers.items():
        homes = {s.rpartition(".")[0] for s in layer.sources.values()}
        new |= {f"{name}.frozen": given[f"{home}.frozen"] for home in homes if f"{home}.frozen" in given}
    return new


def _shaped(value: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    """A tensor of a normalizer in the form this layer has it."""
    flat = value.flatten() if value.numel() == max([1, *value.shape]) and value.dim() > 0 else value
    if isinstance(module, IBN) and flat.shape == (module.num_features,) and like.shape == module.statistics_shape():
        flat = flat[module.instance_features :]
    if isinstance(module, ConditionalNorm | ContextNorm) and like.dim() > flat.dim():
        return flat.unsqueeze(-1).expand(like.shape) if flat.dim() == 0 else flat.expand(like.shape[0], *flat.shape)
    return flat if flat.shape == like.shape else value


def _is_official(given: Mapping[str, Tensor], source: str) -> bool:
    """Whether a layer of the checkpoint is of the authors of switchable norm: logits, and a weight with more than one dimension."""
    weight = given.get(f"{source}.weight" if source else "weight")
    return weight is not None and weight.dim() > 1 and all((f"{source}.{key}" if source else key) in given for key in _LOGITS)


def _same_parts(module: nn.Module | None, key: str, given: Mapping[str, Tensor], source: str) -> bool:
    """Whether logits are of the same statistics: two of them are instance and layer for images, layer and batch for the rest."""
    name, _, tensor = source.rpartition(".")
    if not isinstance(module, SwitchableNorm) or tensor not in _LOGITS or not _is_official(given, name):
        return True
    three = given[source].numel() == 3
    rows = given[f"{name}.weight" if name else "weight"].dim() == 2
    return module.parts == (("instance", "layer", "batch") if three else ("layer", "batch") if rows else ("instance", "layer"))


def _finished(name: str, layer: _Found, given: Mapping[str, Tensor]) -> BridgedLayer:
    """The layer's options set to what its weights were trained with, and what there is to say of it."""
    module, changed = layer.module, []
    homes = sorted({source.rpartition(".")[0] for source in layer.sources.values()})
    if isinstance(module, SwitchableNorm) and homes and _is_official(given, homes[0]):
        momentum = 0.1 if given[f"{homes[0]}.weight" if homes[0] else "weight"].dim() == 4 else 0.003
        for option, value in (("momentum", momentum), ("unbiased", True), ("eps", 1e-5)):
            if getattr(module, option) != value:
                changed.append(f"{option}={value}")
                setattr(module, option, value)
    parts = (tuple(layer.sources), tuple(layer.initial), tuple(layer.dropped), tuple(changed))
    return BridgedLayer(name, type(module).__name__, ", ".join(homes), *parts)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")

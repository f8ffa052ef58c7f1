"""What placing any natural-gradient layer needs: which layers can have one, a look at the data, hooks, folding."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from normsmith.errors import InputError, ModelError
from normsmith.methods.batch import BatchNorm
from normsmith.natural.geometry import PLAIN, Plain
from normsmith.natural.layer import NaturalLayer
from normsmith.natural.states import Followers
from normsmith.surgery import _optimizers
from normsmith.surgery._batches import batches_of
from normsmith.surgery._constant import storages
from normsmith.surgery._examples import first_of, leaving_no_trace, loader_of, target_of
from normsmith.surgery._models import places, run_batch, to_device
from normsmith.surgery._neighbours import Neighbours, watch
from normsmith.surgery._request import Loss, Request
from normsmith.surgery._successor import HOOKS
from normsmith.surgery._trial import copied, trial
from normsmith.surgery.conversion import Row, Swap

BATCH_NORMS = (_BatchNorm, BatchNorm)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The layers that can be reparametrized, by name, those that cannot with the reason, and who reads what."""

    layers: dict[str, Plain]
    left: dict[str, tuple[nn.Module, str]]
    neighbours: Neighbours
    loader: Iterable[Any]
    example: Any  # the arguments of the model in the first batch


def choose(request: Request, beside: Callable[[nn.Module], bool]) -> Chosen:
    """The layers that a request is about, after a look at the first batch, at those modules too that `beside` is true for."""
    model, verb = request.model, f"reparametrize to {request.name!r}"
    loader = loader_of(request.data, request.batches, verb)
    example = first_of(loader, model, verb)
    layers: dict[str, Plain] = {}
    left: dict[str, tuple[nn.Module, str]] = {}
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise ModelError(f"{verb} expects a model that knows its sizes: got one with lazy layers; run the model once")
    held = storages(model)
    for module, names in places(model).items():
        if not isinstance(module, (*PLAIN, _ConvTransposeNd)) or not _wanted(request, module, names):
            continue
        reason = _why_not(module, names, held) if isinstance(module, PLAIN) else "is a transposed convolution"
        if isinstance(module, PLAIN) and not reason:
            layers[names[0]] = module
        else:
            left[names[0]] = module, reason
    with trial(model, eager=False):
        watched = dict.fromkeys([*layers.values(), *(m for m in model.modules() if beside(m))])
        neighbours, _ = watch(model, copied(example), watched)
    for name, layer in list(layers.items()):
        calls = neighbours.of(layer)
        if not calls:
            left[name] = layers.pop(name), "the first batch does not reach it"
    if not layers:
        raise _nothing(model, left)
    return Chosen(layers, left, neighbours, loader, example)


def _wanted(request: Request, module: nn.Module, names: list[str]) -> bool:
    return request.where is None or any(request.where(module, name) for name in names)


def _why_not(module: Plain, names: list[str], held: dict[int, list[str]]) -> str:
    """Why a layer cannot be put into other coordinates; empty if it can."""
    weight: Any = module._parameters.get("weight")
    holders = [held.get(p.untyped_storage().data_ptr(), []) for p in module.parameters()]
    tied = next((found for found in holders if len(found) > 1), [])
    reasons = {
        f"is a {type(module).__name__}, a subclass of {type(module).__mro__[1].__name__}, which may do anything": type(module)
        not in PLAIN,
        "has a parametrization already": is_parametrized(module),
        "has a weight or bias that is no parameter": weight is None or "bias" not in module._parameters,
        "has a forward of its own put in place": "forward" in module.__dict__,
        f"is shared: {', '.join(names[:3])}": len(names) > 1,
        f"has a tied weight: {', '.join(tied[:3])}": bool(tied),
        f"has a weight in {getattr(weight, 'dtype', None)}": weight is not None and not weight.is_floating_point(),
    }
    return next((reason for reason, true in reasons.items() if true), "")


def reason_against(module: nn.Module, model: nn.Module) -> str:
    """Why a layer of a model cannot be replaced; empty if it can."""
    names = places(model)[module]
    if isinstance(module, PLAIN):
        return _why_not(module, names, storages(model))
    return f"is shared: {', '.join(names[:3])}" if len(names) > 1 else ""


def _nothing(model: nn.Module, left: dict[str, tuple[nn.Module, str]]) -> ModelError:
    if left:
        name, (_, reason) = next(iter(left.items()))
        return ModelError(
            f"reparametrize expects a layer that it can put into other coordinates: got {len(left)} that it cannot, such as {name!r}, "
            f"which {reason}"
        )
    return ModelError(
        f"reparametrize expects linear or convolutional layers: got none in {type(model).__name__}, or none that where() selects"
    )


def normed_behind(layer: nn.Module, seen: Neighbours) -> bool:
    """Whether all that reads a layer's outputs are batch norms."""
    readers = [user for call in seen.of(layer) for user in seen.users.get(call.result, {})]
    outlives = any(call.result in seen.kept for call in seen.of(layer))
    return bool(readers) and not outlives and all(isinstance(user, BATCH_NORMS) for user in readers)


def is_last(layer: nn.Module, seen: Neighbours) -> bool:
    """Whether a layer's output is the model's, or no layer that was watched runs after it."""
    if any(call.result in seen.kept for call in seen.of(layer)):
        return True
    last = [calls[-1].result for calls in seen.calls.values() if isinstance(calls[-1].layer, PLAIN)]
    order = list(seen.makers)
    return max(map(order.index, last)) == order.index(seen.of(layer)[-1].result)


def swap(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> Swap:
    """The new layer with the hooks of the old one, ready to take its place."""
    for key in HOOKS:
        if getattr(old, key, None):
            setattr(new, key, getattr(old, key))  # the same dictionary: a handle's remove() works on both
    if isinstance(getattr(old, "_is_full_backward_hook", None), bool):
        new._is_full_backward_hook = old._is_full_backward_hook
    parent, _, key = name.rpartition(".")
    return Swap(old, new, ((model.get_submodule(parent), key),) if name else ())


def look(
    model: nn.Module, layers: Sequence[NaturalLayer], loader: Iterable[Any], batches: int | None, loss: Loss | None
) -> None:
    """Let the layers see data, and gradients of the loss if there is one; then gather what all ranks have seen, or raise."""
    device = next((p.device for p in model.parameters()), None)
    for layer in layers:
        layer.attend("always")
    try:
        with leaving_no_trace(model), torch.set_grad_enabled(loss is not None):
            for batch in batches_of(loader, batches, "looking at the data"):
                output = run_batch(model, batch)
                if loss is not None:
                    _back(loss(output, target_of(to_device(batch, device), "reparametrize")), layers)
        for layer in layers:
            if not layer.gather():
                raise InputError(
                    f"reparametrize expects finite data that reaches every layer: got NaN, infinity or nothing at {layer}; look at the "
                    "data, or for an overflow before the layer"
                )
    except BaseException:
        settle(layers)
        raise


def settle(layers: Iterable[NaturalLayer]) -> None:
    """Let the layers look when their schedules say so, and forget what they have seen."""
    for layer in layers:
        layer.attend(layer.due())


def _back(value: Any, layers: Sequence[NaturalLayer]) -> None:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise InputError("reparametrize expects loss(output, target) to return one number with a gradient: got something else")
    probes = [layer.seen.probe for layer in layers if layer.seen.probe is not None]
    for probe, found in zip(probes, torch.autograd.grad(value, probes, allow_unused=True), strict=True):
        if found is not None:
            probe.grad = found if probe.grad is None else probe.grad + found


def natural_layers(model: nn.Module) -> Iterator[tuple[str, NaturalLayer]]:
    """Those of a model, with their names."""
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, NaturalLayer))


def refresh(model: nn.Module, data: Any, batches: int | None, loss: Loss | None) -> None:
    """Refresh every natural layer of a model by data."""
    layers = [layer for _, layer in natural_layers(model)]
    look(model, layers, loader_of(data, batches, "refresh"), batches, loss)
    for layer in layers:
        layer.refresh()
    settle(layers)


def fold(model: nn.Module) -> nn.Module:
    """Plain layers in the places of the natural ones."""
    for name, layer in list(natural_layers(model)):
        plain = swap(model, name, layer, layer.folded())
        plain.do()
        if not name:
            return plain.new
    return model


def followers(request: Request) -> Followers:
    """The optimizers as layers tell them of changes."""
    return Followers(request.optimizers, request.moments)


def patched(patches: Sequence[_optimizers.Patch], before: Sequence[tuple[str, nn.Parameter]], model: nn.Module) -> None:
    """Take parameters that are gone out of the optimizers, and put new ones in beside those of the same layer."""
    held = dict(before)
    now = dict(model.named_parameters())
    gone = set(held.values()) - set(now.values())
    known = set(held.values())
    added = []
    for name, parameter in now.items():
        if parameter not in known:
            kin = [p for other, p in held.items() if f"{_layer_of(name)}.".startswith(f"{_layer_of(other)}.")]
            added.append((name, parameter, [*reversed(kin), *held.values()]))
    for patch in patches:
        patch.apply(gone, added)


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def left_rows(chosen: Chosen) -> list[Row]:
    """The rows of the layers that were left."""
    return [Row(name, type(module).__name__, None, reason=reason) for name, (module, reason) in chosen.left.items()]

"""Who feeds whom: one forward of a model, watched for what becomes of every tensor that certain layers put out."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normsmith.surgery._models import run, tensors

User = nn.Module | str  # a watched layer, or an operation outside of all of them


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a watched layer that takes a tensor and gives one; tensors go by their identity."""

    layer: nn.Module
    source: int
    origin: str  # the operation that last wrote the input
    result: int
    shapes: tuple[torch.Size, torch.Size]
    dtypes: tuple[torch.dtype, torch.dtype]
    alone: bool  # no argument beside the input


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What one forward showed."""

    calls: dict[nn.Module, list[Call]]
    users: dict[
        int, dict[User, None]
    ]  # of every result, what operations were done on it, by the layer they belong to; in order
    strays: dict[nn.Module, str]  # layers whose parameters or buffers an operation outside of them read, and it
    kept: frozenset[int]  # results that outlive the forward: returned, or held somewhere
    makers: dict[int, Call]

    def of(self, layer: nn.Module) -> list[Call]:
        """The calls of a layer, none if the example does not reach it."""
        return self.calls.get(layer, [])


def watch(model: nn.Module, example: Any, layers: Iterable[nn.Module]) -> tuple[Neighbours, Any]:
    """The neighbours of `layers` in one forward, and its output.

    Every operation that reaches torch's dispatcher is seen, inside modules and between them, so that nothing depends on how the model is
    written. What goes into these layers and comes out of them stays in memory until the forward ends: an identity must not be given twice.
    """
    seen = _Watch(list(layers))
    hooks = [hook for layer in seen.layers for hook in seen.hooked(layer)]
    try:
        with seen:
            output = run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen.conclude(output), output


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The record while the forward runs."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = layers
        self.inside: list[tuple[nn.Module, str]] = []  # the watched layers being run, innermost last
        self.results: dict[int, Tensor] = {}
        self.sources: list[Tensor] = []
        self.origins: dict[int, str] = {}
        self.users: dict[int, dict[User, None]] = {}
        self.calls: dict[nn.Module, list[Call]] = {}
        self.makers: dict[int, Call] = {}
        self.strays: dict[nn.Module, str] = {}
        self.owners: dict[int, nn.Module] = {
            id(t): layer for layer in layers for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        for tensor in _within((args, kwargs)):
            key = id(tensor)
            if key in self.results:
                self.users.setdefault(key, {})[self.inside[-1][0] if self.inside else name] = None
            owner = self.owners.get(key)
            if owner is not None and all(owner is not layer for layer, _ in self.inside):
                self.strays[owner] = name
        output = func(*args, **kwargs)
        for tensor in _within(output):
            self.origins[id(tensor)] = name
        return output

    def hooked(self, layer: nn.Module) -> Iterator[Any]:
        """The hooks that tell when the layer is being run."""

        def enter(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            source = next(_within((args, kwargs)), None)
            self.inside.append((layer, self.origins.get(id(source), "")))

        def leave(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            _, origin = self.inside.pop()
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            source = given[0] if given else None
            if isinstance(source, Tensor) and isinstance(output, Tensor):  # there is none if the layer raised
                alone = len(given) == 1
                shapes, dtypes = (source.shape, output.shape), (source.dtype, output.dtype)
                call = Call(layer, id(source), origin, id(output), shapes, dtypes, alone)
                self.results[call.result] = output
                self.sources.append(source)
                self.makers[call.result] = call
                self.calls.setdefault(layer, []).append(call)

        yield layer.register_forward_pre_hook(enter, with_kwargs=True)
        yield layer.register_forward_hook(leave, with_kwargs=True, always_call=True)

    def conclude(self, output: Any) -> Neighbours:
        """What was seen, without the tensors: those that live on without this record are kept by something else."""
        left = {key: weakref.ref(tensor) for key, tensor in self.results.items()}
        self.results.clear()
        self.sources.clear()
        returned = {id(tensor) for tensor in tensors(output)}
        if any(reference() is not None for key, reference in left.items() if key not in returned):
            gc.collect()  # a cycle that nobody needs is no holder
        kept = frozenset(key for key, reference in left.items() if reference() is not None)
        return Neighbours(self.calls, self.users, self.strays, kept, self.makers)


def _within(value: Any) -> Iterator[Tensor]:
    """The tensors in the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _within(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _within(item)

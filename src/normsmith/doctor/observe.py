"""Running a model over data with hooks that take the moments of what its normalizers read; nothing of the model is changed."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis._photograph import Photograph, Randomness
from normsmith.doctor.observation import Layer, Observation
from normsmith.errors import InputError, ModelError
from normsmith.surgery._batches import batches_of, check_loader
from normsmith.surgery._choice import candidates
from normsmith.surgery._constant import is_weighted
from normsmith.surgery._models import Forward, evaluating, expect_module, run_batch, tensors
from normsmith.surgery._statistics import Kept, norms_of


def observe(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    keep: Callable[[Any], None] | None = None,
) -> Observation:
    """One pass over the data, in evaluation; a model or loader that raises ends it early, with what was seen until then.

    `keep` is given every batch that the model took.
    """
    expect_module(model, "examine")
    check_loader(loader, batches, "examine")
    found = candidates(model)
    seen = Observation(model, [Layer(c.name, c.layer, c.source) for c in found if c.source is not None], optimizer=optimizer)
    seen.unread = {c.name: c.reason for c in found if c.source is None}
    if not found:
        raise ModelError(f"examine expects a model with normalization layers: got {norms_of(model)}")
    with contextlib.suppress(TypeError):
        seen.steps_per_epoch = len(loader)  # type: ignore[arg-type]
    kept, photograph, randomness = Kept(model.modules(), model.parameters()), Photograph(model), Randomness(model)
    held = [*model.parameters(), *model.buffers()]
    versions = [t._version for t in held]
    try:
        with evaluating(model), _watching(seen):
            _run(seen, loader, batches, forward, keep)
    finally:
        if [t._version for t in held] != versions:
            kept.restore()
        photograph.restore()
        randomness.put_back()
    if not seen.batches and not seen.missing:
        raise InputError(
            "examine expects a loader with at least one batch: got an empty one; an iterator is empty once it was gone through"
        )
    return seen


def _run(
    seen: Observation,
    loader: Iterable[Any],
    batches: int | None,
    forward: Forward | None,
    keep: Callable[[Any], None] | None,
) -> None:
    source = batches_of(loader, batches, "examining")
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001  (a loader of anyone's)
            seen.missing.append(f"batches from {seen.batches} on: the loader raised {type(error).__name__}: {_line(error)}")
            return
        try:
            run_batch(seen.model, batch, forward)
        except Exception as error:  # noqa: BLE001  (a model of anyone's)
            seen.missing.append(f"batches from {seen.batches} on: the model raised {type(error).__name__}: {_line(error)}")
            return
        first = next(iter(tensors(batch)), None)
        size = 0 if first is None or not first.dim() else first.shape[0]
        seen.batches += 1
        seen.samples += size
        seen.batch_sizes.append(size)
        for layer in seen.layers:
            layer.end_forward()
        if keep is not None:
            keep(batch)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


@contextlib.contextmanager
def _watching(seen: Observation) -> Iterator[None]:
    """Hooks on every normalizer, and on what may be right before one."""
    made: dict[int, tuple[weakref.ref[Tensor], str, bool]] = {}
    names = {module: name for name, module in seen.model.named_modules()}

    def remember(module: nn.Module, _: Any, y: Any) -> None:
        if isinstance(y, Tensor):
            made[id(y)] = weakref.ref(y), names[module], getattr(module, "bias", None) is not None

    handles = [m.register_forward_hook(remember) for m in names if is_weighted(m)]
    for layer in seen.layers:

        def look(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], layer: Layer = layer) -> None:
            x = arguments[0] if arguments else next(iter(options.values()))
            origin = made.get(id(x))
            if origin is not None and origin[0]() is x:
                layer.before, layer.biased = origin[1:]
            _look(layer, x)

        handles.append(layer.module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(layer: Layer, x: Tensor) -> None:
    """Take down one input."""
    layer.calls += 1
    if layer.source.channels_last and x.dim() > 2:
        x = x.movedim(-1, 1)
    if x.dim() < 2 or x.numel() == 0 or not x.is_floating_point() or x.shape[1] != layer.source.num_features:
        return
    positions = x.numel() // (x.shape[0] * x.shape[1])
    layer.samples.append(x.shape[0])
    layer.positions = positions if not layer.positions else min(layer.positions, positions)
    layer.take(x.detach())

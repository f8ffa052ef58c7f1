"""Does the output for a sample depend on the samples beside it, or on padding behind it? Two or three forwards of two samples tell.

A normalizer is blamed only if what it reads for a sample is the same in both forwards and what it gives is not, so that what other layers
mix is not held against it, nor what comes behind the layer that mixes first.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.doctor.hooks import first_of
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.pictures import size_of
from normsmith.methods.catalog import CATALOG
from normsmith.surgery._models import Forward, run_batch

SAME = 1e-4  # relative, of what is read
Seen = list[tuple[str, Tensor, Tensor]]


def by_batch_in_evaluation(layer: Layer) -> bool:
    """Whether a layer is known to normalize by the batch in evaluation too."""
    return CATALOG[layer.source.method].batch_dependent and not layer.tracked and getattr(layer.module, "use_batch", True)


def look_for_mixing(seen: Observation, batch: Any, forward: Forward | None) -> None:
    """Fill in `by_mates` and `by_padding` of the layers, and `mixing` of those that could not be read, where there is any doubt."""
    size = size_of(batch)
    doubtful = bool(seen.unread) or any(by_batch_in_evaluation(layer) for layer in seen.layers)
    pooling = doubtful or any(not _by_position(layer) for layer in seen.layers)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    masked = isinstance(mask, Tensor) and mask.dim() == 2
    if size < 2 or not (doubtful or (masked and pooling)):
        return
    modules = {layer.name: layer.module for layer in seen.layers} | {
        name: seen.model.get_submodule(name) for name in seen.unread
    }
    run = _Probe(seen.model, modules, forward)
    pair = _of_samples(batch, size, [0, 1])
    try:
        plain = run(pair)
        mates = _differing(plain, run(_of_samples(batch, size, [0, 0]))) if doubtful else {}
        padded = _differing(plain, run(_padded(pair, mask.shape[1]))) if masked and pooling else {}  # type: ignore[union-attr]
    except Exception as error:  # noqa: BLE001  (a model of anyone's)
        what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        seen.missing.append(f"whether samples depend on others or on padding: the model raised {what} for two samples")
        return
    for layer in seen.layers:
        layer.by_mates, layer.by_padding = mates.get(layer.name, 0.0), padded.get(layer.name, 0.0)
    seen.mixing = {name: (mates.get(name, 0.0), padded.get(name, 0.0)) for name in seen.unread}


def _by_position(layer: Layer) -> bool:
    """Whether a layer is known to treat each position by itself in evaluation."""
    constant = layer.tracked and layer.source.method in {"batch", "frozen"}
    return constant or (layer.source.channels_last and layer.source.method in {"layer", "rms"})


class _Probe:
    """The model, run on two samples with the same random numbers each time; what each normalizer reads and gives for the first sample."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], forward: Forward | None) -> None:
        self.model, self.modules, self.forward = model, modules, forward

    def __call__(self, batch: Any) -> Seen:
        found: Seen = []
        devices = {t.get_device() for t in self.model.parameters() if t.is_cuda}
        with torch.random.fork_rng(sorted(devices)), self._watched(found):
            torch.manual_seed(0)
            run_batch(self.model, batch, self.forward)
        return found

    @contextlib.contextmanager
    def _watched(self, found: Seen) -> Iterator[None]:
        handles = []
        for name, module in self.modules.items():

            def take(_: nn.Module, arguments: Any, options: Any, y: Any, name: str = name) -> None:
                x = first_of(arguments, options)
                if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dim() > 1:
                    rows = max(1, x.shape[0] // 2)
                    found.append((name, x[:rows].detach().clone(), y[:rows].detach().clone()))

            handles.append(module.register_forward_hook(take, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _differing(plain: Seen, other: Seen) -> dict[str, float]:
    """The layers that read the same and give something else, and by how much of its size."""
    found: dict[str, float] = {}
    for (name, x, y), (same, other_x, other_y) in zip(plain, other, strict=False):
        if name != same or x.dim() != other_x.dim():
            break  # another way through the model
        common = tuple(slice(min(a, b)) for a, b in zip(x.shape, other_x.shape, strict=True))
        if relative(x[common], other_x[common]) < SAME:
            found[name] = max(found.get(name, 0.0), relative(y[common], other_y[common]))
    return found


def relative(one: Tensor, two: Tensor) -> float:
    """The distance of two tensors, relative to the first."""
    one, two = one.double(), two.double()
    size = one.norm()
    return float((one - two).norm() / size) if size > 0 else float(not torch.equal(one, two))


def _of_samples(batch: Any, size: int, chosen: list[int]) -> Any:
    """Some samples of a batch, everything else as it is."""
    if isinstance(batch, Tensor):
        return batch[chosen] if batch.dim() and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        return {key: _of_samples(item, size, chosen) for key, item in batch.items()}
    if isinstance(batch, tuple | list):
        return [_of_samples(item, size, chosen) for item in batch]
    return batch


def _padded(batch: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Every sequence of that length made longer by a quarter: numbers by zeros, tokens by the last one, the mask by what leaves it out."""
    more = max(1, length // 4)

    def longer(key: str, item: Any) -> Any:
        if not isinstance(item, Tensor) or item.dim() < 2 or item.shape[1] != length:
            return item
        tail = item[:, -1:].repeat_interleave(more, 1)
        blank = key == "attention_mask" or item.is_floating_point()
        return torch.cat([item, torch.zeros_like(tail) if blank else tail], 1)

    return {key: longer(key, item) for key, item in batch.items()}

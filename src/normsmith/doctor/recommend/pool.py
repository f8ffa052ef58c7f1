"""Samples of a loader's batches, put together, so that batches of any size can be cut from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normsmith.errors import InputError
from normsmith.surgery._batches import batches_of, check_loader

SAMPLES, BYTES = 512, 256 << 20


class Pool:
    """Up to 512 samples, or 256 MB."""

    def __init__(self, loader: Iterable[Any], batches: int | None) -> None:
        check_loader(loader, batches, "recommend", again="exam.recommend()")
        held: list[Any] = []
        self.size, self.first, size_of = 0, 0, 0
        for batch in batches_of(loader, batches, "reading samples"):
            found = _tensors(batch)
            if not found or found[0].dim() == 0:
                raise InputError(
                    "recommend expects batches of tensors, with samples in their first dimension: got "
                    f"{type(batch).__name__}; let the loader yield tensors"
                )
            held.append(batch)
            self.first = self.first or found[0].shape[0]
            self.size += found[0].shape[0]
            size_of += sum(t.numel() * t.element_size() for t in found)
            if self.size >= SAMPLES or size_of >= BYTES:
                break
        if not held:
            raise InputError("recommend expects a loader with at least one batch: got an empty one")
        try:
            self._whole = _joined(held)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"recommend expects samples of one shape, to cut other batches from them: got {str(error).partition(chr(10))[0]}"
            ) from None

    def batch(self, samples: Tensor) -> Any:
        """The batch of these samples, built as those of the loader."""
        return _chosen(self._whole, samples, self.size)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors, of whole numbers too."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [t for item in items for t in _tensors(item)]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.dim() else first
    if isinstance(first, Mapping):
        return {key: _joined([value[key] for value in values]) for key in first}
    if isinstance(first, tuple | list):
        if not any(_tensors(item) for item in first):  # names, say: one for each sample
            return [item for value in values for item in value]
        return [_joined(items) for items in zip(*values, strict=True)]
    return first


def _chosen(value: Any, samples: Tensor, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[samples.to(value.device)] if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _chosen(item, samples, size) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) == size and not any(_tensors(item) for item in value):
            return [value[i] for i in samples.tolist()]
        return [_chosen(item, samples, size) for item in value]
    return value

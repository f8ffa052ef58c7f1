"""Normalizers by the batch, while the rest of the model is in evaluation."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from normsmith.surgery._statistics import is_frozen, keeps


def keepers_in(module: nn.Module) -> list[nn.Module]:
    """The layer, or what an adapter has inside, that would normalize by the batch in training."""
    return [m for m in module.modules() if keeps(m) and not is_frozen(m)]


@contextlib.contextmanager
def by_batch(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In this block these layers work as in training; their buffers move, so run the model with copies."""
    modes = {m: m.training for module in modules for m in keepers_in(module)}
    try:
        for m in modes:
            m.training = True
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode

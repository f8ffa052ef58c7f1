"""Data as `reparametrize` takes it: a tensor, a batch, or a loader; and what the model makes of it without a trace."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import InputError, OptionError
from normsmith.surgery._batches import check_loader
from normsmith.surgery._models import to_device
from normsmith.surgery._statistics import Kept


def loader_of(data: Any, batches: int | None, verb: str) -> Iterable[Any]:
    """A loader that can be gone through several times."""
    if data is None:
        raise OptionError(f"{verb} expects data to see what the layers are given: got None; give a batch or a loader")
    if isinstance(data, Tensor | Mapping) or (isinstance(data, tuple) and data and isinstance(data[0], Tensor | Mapping)):
        return [data]
    check_loader(data, batches, verb, again="several passes")
    return data  # type: ignore[no-any-return]


def first_of(loader: Iterable[Any], model: nn.Module, verb: str) -> Any:
    """The arguments of the model in the first batch."""
    batch = next(iter(loader), None)
    if batch is None:
        raise InputError(f"{verb} expects data with at least one batch: got none; check the loader")
    device = next((p.device for p in model.parameters()), None)
    batch = to_device(batch, device)
    return batch[0] if isinstance(batch, list) else batch


def target_of(batch: Any, verb: str) -> Any:
    """What follows the input in a batch."""
    if not isinstance(batch, list) or len(batch) < 2:
        raise InputError(f"{verb} expects batches (input, target) for its loss: got {type(batch).__name__} without a target")
    return batch[1] if len(batch) == 2 else batch[1:]


@contextlib.contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """In this block the model runs in the modes it is in; buffers and random state are put back after it."""
    kept = Kept(model.modules())
    devices = {t.get_device() for t in model.parameters() if t.is_cuda}
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(sorted(devices)):
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # in evaluation torch's transformer layers read weights past their layers
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            kept.restore()

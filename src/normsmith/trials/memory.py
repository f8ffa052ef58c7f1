"""What a forward keeps for its backward, and the most that was in use over a while."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.trials.algorithms import Forward, plain


def kept_for_backward(model: nn.Module, x: Tensor, forward: Forward = plain) -> int:
    """Bytes of all tensors saved in a forward in training, each memory once, without the parameters; on a copy of the model."""
    twin = copy.deepcopy(model).train()
    own = {p.untyped_storage().data_ptr() for p in twin.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    random = torch.get_rng_state()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            output: Any = forward(twin, x)
    finally:
        torch.set_rng_state(random)
    del output  # it held what was found, so that no address was taken twice
    return sum(size for place, size in found.items() if place not in own)


def watch_peak(device: torch.device) -> Callable[[], dict[str, float]]:
    """From here on watch the most bytes in use; what is returned tells them, as "peak memory".

    On a GPU those of torch's allocator; else those of the whole process, what earlier trials left in it included: to be compared
    within a trial, not between trials. Nothing where the system does not let a process ask (it is Linux's /proc).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: {"peak memory": float(torch.cuda.max_memory_allocated(device))}
    try:
        _PEAK.write_text("5")  # puts VmHWM back to what is in use now
    except OSError:
        return dict
    return _highest


_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def _highest() -> dict[str, float]:
    words = _STATUS.read_text().partition("VmHWM:")[2].split()
    return {"peak memory": float(words[0]) * 1024} if words else {}


def _same(tensor: Tensor) -> Tensor:
    return tensor

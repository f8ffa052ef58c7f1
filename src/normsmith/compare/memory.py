"""The most memory that a block of code had beyond what was held before."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """In bytes; None where the system does not say."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """On a GPU what torch's allocator took; on Linux what the process did; nothing elsewhere."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    try:
        _CLEAR.write_text("5")  # the kernel forgets the highest mark
        resident = _kilobytes("VmRSS")
    except OSError:
        yield peak
        return
    yield peak
    peak.bytes = max(_kilobytes("VmHWM") - resident, 0) * 1024


def _kilobytes(name: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))

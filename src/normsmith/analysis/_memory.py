"""How much memory a piece of work takes at its worst."""

from collections.abc import Callable

import torch


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that torch's allocator held during the run beyond what it held before; of the CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

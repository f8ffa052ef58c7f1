"""Interleaved rounds. The machine drifts, so a ratio is the median over rounds of two times taken within one round."""

import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

SHORTEST = 5e-3  # seconds a single measurement should last: shorter runs are repeated within it


@dataclass(frozen=True)
class Times:
    """Seconds of each contestant in each round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """The median time of a contestant."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """The median of the paired ratios."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True))


Clock = Callable[[Callable[[], object], int], float]  # seconds that a run takes, from so many of them


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    device: str = "cpu",
    dispensable: Collection[str] = (),
) -> Times:
    """Time every contestant once a round, in a new order each round; those that may be missing are, if memory is too small for them."""
    repeats, clock = {}, clock_of(device)
    for name, run in runs.items():
        try:
            for _ in range(warmup):
                run()
            repeats[name] = max(1, min(200, round(SHORTEST / max(clock(run, 1), 1e-7))))
        except torch.OutOfMemoryError:
            if name not in dispensable:
                raise
    seconds: dict[str, list[float]] = {name: [] for name in repeats}
    order = list(repeats)
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            runs[name]()  # not timed: nobody pays for what the one before left in caches and allocator
            seconds[name].append(clock(runs[name], repeats[name]))
    return Times(seconds)


def clock_of(device: str) -> Clock:
    """What tells the time of that device."""
    return _by_wall if device == "cpu" else _by_events


def _by_wall(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _by_events(run: Callable[[], object], repeats: int) -> float:
    """The time between two events on the stream of the GPU: with many runs between them, launching costs only what it delays."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def interval(values: list[float], level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """The percentile bootstrap interval of the median."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(draws))
    cut = int((1 - level) / 2 * draws)
    return medians[cut], medians[-cut - 1]


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """The most memory that torch's allocator held during the run beyond what it held before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    del result
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak

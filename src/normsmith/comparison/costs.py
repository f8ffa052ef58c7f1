"""`Cost`: what a normalizer takes of time and memory, also beside the baseline, and how soon it reaches the target accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from normsmith.comparison.settings import Group, Row


@dataclass(frozen=True)
class Cost:
    """Medians over seeds; None where nothing was measured, or nothing that may be compared."""

    seconds_per_step: float | None
    seconds_ratio: float | None  # to the baseline, of the same seed on the same machine
    memory: float | None  # bytes
    memory_ratio: float | None
    reached: int | None  # seeds that came to the target accuracy; None where the recipe has no target
    seconds_to_target: float | None  # of those


def cost(group: Group, normalizer: str, baseline: str) -> Cost:
    """Of one normalizer in a setting."""
    rows, others = group.rows[normalizer], group.rows.get(baseline, {})
    pairs = [(row, others[seed]) for seed, row in rows.items() if seed in others and row["machine"] == others[seed]["machine"]]
    target = any(row["target_accuracy"] is not None for row in rows.values())
    times = [row["seconds to target"] for row in rows.values() if row["seconds to target"] is not None]
    return Cost(
        _median([row["seconds per step"] for row in rows.values()]),
        _ratio(pairs, lambda row: row["seconds per step"]),
        _median([row["memory"] for row in rows.values()]),
        _ratio(pairs, lambda row: row["memory"]),
        len(times) if target else None,
        _median(times),
    )


def _ratio(pairs: list[tuple[Row, Row]], value: Callable[[Row], float | None]) -> float | None:
    measured = [(value(row), value(other)) for row, other in pairs]
    return _median([ours / theirs for ours, theirs in measured if ours is not None and theirs])


def _median(values: list[float | None] | list[float]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return median(known) if known else None

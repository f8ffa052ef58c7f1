"""The checks, one room each: a docstring with the thresholds and where they are from, and `check(seen)`, which yields findings."""

from collections.abc import Callable, Iterator

from normsmith.doctor.checks import (
    affine_decay,
    bias_before,
    dead_channels,
    eps_dominated,
    evaluation_by_batch,
    half_precision,
    momentum_window,
    never_updated,
    not_finite,
    not_frozen,
    shared_layer,
    single_value,
    small_batch,
    train_eval_gap,
)
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

CHECKS: tuple[Callable[[Observation], Iterator[Finding]], ...] = tuple(
    module.check
    for module in (
        not_finite,
        never_updated,
        train_eval_gap,
        eps_dominated,
        dead_channels,
        half_precision,
        momentum_window,
        small_batch,
        single_value,
        shared_layer,
        evaluation_by_batch,
        not_frozen,
        affine_decay,
        bias_before,
    )
)

"""The checks, one room each: a docstring with the thresholds and where they are from, and `check(seen)`, which yields findings."""

from collections.abc import Callable, Iterator

from normsmith.doctor.checks import (
    affine_decay,
    batch_mates,
    bias_before,
    dead_channels,
    distributed_buffers,
    domain_shift,
    eps_dominated,
    evaluation_by_batch,
    gradient_growth,
    half_precision,
    loss_share,
    memory_format,
    momentum_window,
    never_updated,
    not_finite,
    not_frozen,
    outliers,
    shared_layer,
    single_value,
    small_batch,
    stale_statistics,
    train_eval_gap,
    unequal_scales,
    updated_twice,
)
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

Check = Callable[[Observation], Iterator[Finding]]

# What layers hold and how they are used.
OF_STATE: tuple[Check, ...] = tuple(
    module.check
    for module in (
        not_finite,
        never_updated,
        single_value,
        not_frozen,
        momentum_window,
        affine_decay,
        bias_before,
        updated_twice,
        memory_format,
        distributed_buffers,
    )
)
# What layers read: where statistics are those of no data, what comes behind them is not what the model does.
OF_DATA: tuple[Check, ...] = tuple(
    module.check
    for module in (
        train_eval_gap,
        stale_statistics,
        domain_shift,
        eps_dominated,
        dead_channels,
        half_precision,
        small_batch,
        shared_layer,
        evaluation_by_batch,
        batch_mates,
        outliers,
    )
)
# What needs a loss: depth="full".
OF_LOSS: tuple[Check, ...] = tuple(module.check for module in (loss_share, gradient_growth, unequal_scales))
SPOIL = {"NS101", "NS103"}
CHECKS = (*OF_STATE, *OF_DATA, *OF_LOSS)

"""What happens to statistics, in small loops: as operations of torch each step costs more than its work, most so when caches are cold."""

import numpy as np

from normsmith.kernels.cpu.memory import cast, inner, sequential, view


@inner
def _weigh_by_rows(zero, samples, channels, pooled, grad, value, weight, own, dot):
    """For a statistic of every cell, or of every sample, `pooled` over its channels."""
    share = view(weight, zero, 0, 1)[0]
    total = 0.0
    for n in range(samples):
        grads = view(grad, zero, n * channels, channels)
        found = zero
        if pooled:
            for c in range(channels):
                found += grads[c]
            view(own, zero, n, 1)[0] = found * share
            found *= view(value, zero, n, 1)[0]
        else:
            values, owns = view(value, zero, n * channels, channels), view(own, zero, n * channels, channels)
            for c in range(channels):
                owns[c] = grads[c] * share
                found += grads[c] * values[c]
        total += found
    view(dot, zero, 0, 1)[0] = total


@inner
def _weigh_by_columns(zero, samples, channels, grad, value, weight, own, dot):
    """For a statistic of every channel."""
    share = view(weight, zero, 0, 1)[0]
    sums = np.zeros(channels)
    for n in range(samples):
        grads = view(grad, zero, n * channels, channels)
        for c in range(channels):
            sums[c] += grads[c]
    values, owns = view(value, zero, 0, channels), view(own, zero, 0, channels)
    total = 0.0
    for c in range(channels):
        owns[c] = sums[c] * share
        total += sums[c] * values[c]
    view(dot, zero, 0, 1)[0] = total


@sequential
def weigh_source(zero, samples, channels, rows, columns, d_mean, d_var, mean, var, p, q, own_mean, own_var, dot_mean, dot_var):
    """The gradients of mean and variance of one source, of shape (rows, columns), and of its two weights."""
    if rows == samples:
        pooled = columns != channels
        _weigh_by_rows(zero, samples, channels, pooled, d_mean, mean, p, own_mean, dot_mean)
        _weigh_by_rows(zero, samples, channels, pooled, d_var, var, q, own_var, dot_var)
    else:
        _weigh_by_columns(zero, samples, channels, d_mean, mean, p, own_mean, dot_mean)
        _weigh_by_columns(zero, samples, channels, d_var, var, q, own_var, dot_var)


@inner
def _move(zero, rows, size, average, value, factor, step):
    """An average moved towards each row of values in order, times `factor`, by `step` of the way."""
    averages, values = view(average, zero, 0, size), view(value, zero, 0, rows * size)
    by, part, rest = cast(factor, zero), cast(step, zero), cast(1.0 - step, zero)
    for start in range(0, rows * size, size):
        for i in range(size):
            target = values[start + i] * by
            distance = target - averages[i]
            averages[i] = averages[i] + part * distance if step < 0.5 else target - rest * distance


@sequential
def move(zero, rows, size, average, value, factor, other_average, other_value, other_factor, step):
    """Two averages, each moved towards its values."""
    _move(zero, rows, size, average, value, factor, step)
    _move(zero, rows, size, other_average, other_value, other_factor, step)

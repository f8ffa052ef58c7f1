"""The derivative of a blend of moments: one small loop for each source, in the place of many operations that cost more than their work."""

import numpy as np

from normsmith.kernels.cpu.memory import sequential, view


@sequential
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


@sequential
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

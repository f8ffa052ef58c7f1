"""Bringing together what several loops found of the same cells: `parts` results of C numbers each, `outer` times.

A count that nobody asks for has no address, 0.
"""

import numpy as np

from normsmith.kernels.cpu.memory import fill, sequential, view

WIDE = np.float64(0)


@sequential
def copy(zero, size, source, target):
    """So many numbers from float64 to the type of `zero`."""
    wide, narrow = view(source, WIDE, 0, size), view(target, zero, 0, size)
    for i in range(size):
        narrow[i] = wide[i]


@sequential
def merge_moments(zero, outer, parts, channels, count, mean, var, count_out, mean_out, var_out):
    """The law of total variance, weighted by counts, in float64; a part that counts nothing changes nothing."""
    if parts == 1:
        copy(zero, outer * channels, mean, mean_out)
        copy(zero, outer * channels, var, var_out)
        if count_out != 0:
            copy(zero, outer * channels, count, count_out)
        return
    total, middle, spread = np.empty(channels), np.empty(channels), np.empty(channels)
    for o in range(outer):
        fill(total, 0.0)
        fill(middle, 0.0)
        fill(spread, 0.0)
        for part in range(o * parts, (o + 1) * parts):
            counts, means = view(count, WIDE, part * channels, channels), view(mean, WIDE, part * channels, channels)
            for c in range(channels):
                total[c] += counts[c]
                middle[c] += counts[c] * means[c]
        for c in range(channels):
            middle[c] /= max(total[c], 1.0)
        for part in range(o * parts, (o + 1) * parts):
            counts, means = view(count, WIDE, part * channels, channels), view(mean, WIDE, part * channels, channels)
            variances = view(var, WIDE, part * channels, channels)
            for c in range(channels):
                deviation = means[c] - middle[c]
                spread[c] += counts[c] * (variances[c] + deviation * deviation)
        at = o * channels
        means_out, variances_out = view(mean_out, zero, at, channels), view(var_out, zero, at, channels)
        if count_out != 0:
            counts_out = view(count_out, zero, at, channels)
            for c in range(channels):
                counts_out[c] = total[c]
        for c in range(channels):
            means_out[c] = middle[c]
            variances_out[c] = spread[c] / max(total[c], 1.0)


@sequential
def merge_sums(zero, outer, parts, channels, first, second, first_out, second_out):
    """Plain sums of both."""
    if parts == 1:
        copy(zero, outer * channels, first, first_out)
        copy(zero, outer * channels, second, second_out)
        return
    one, two = np.empty(channels), np.empty(channels)
    for o in range(outer):
        fill(one, 0.0)
        fill(two, 0.0)
        for part in range(o * parts, (o + 1) * parts):
            firsts, seconds = view(first, WIDE, part * channels, channels), view(second, WIDE, part * channels, channels)
            for c in range(channels):
                one[c] += firsts[c]
                two[c] += seconds[c]
        ones, twos = view(first_out, zero, o * channels, channels), view(second_out, zero, o * channels, channels)
        for c in range(channels):
            ones[c] = one[c]
            twos[c] = two[c]

"""Standardizing in stages: what they work on, and those stages that are of statistics alone.

A set is `channels // sets` adjacent channels of a sample, whose positions are cut into `parts` runs. Forward: `measure` runs, `settle`
sets, `transfer` runs to y. Backward: `gather` over runs, `pull` at sets, `back` over runs to dx. The stages that read x are in a file for
each layout. Arguments are doubles, at the places named below: three strided tensors, sizes, and addresses:

    weight, bias    0 where there is none
    found           mean, variance and one over the deviation of every set, each N*sets
    room            2*C doubles for every run of a sample, for each core if `own`, else for all samples
    scratch         4*C elements for each core
    lines           slope and offset of every set, each N*sets
    sums            those for weight and bias, 2*C doubles, of each of some `tasks`, which are samples in order
"""

import numpy as np

from normsmith.kernels.cpu.memory import cast, fill, inner, view
from normsmith.kernels.cpu.stages import Stage

WIDE = np.float64(0)
START = np.int64(0)  # as all below not a literal, for each of which numba would compile what is called with it anew
X, Y, DY, SIZES, WEIGHT, BIAS, FOUND, EPS, CENTERED, ROOM, OWN, SCRATCH, LINES, SUMS, TASKS, LENGTH = map(
    np.int64, (0, 3, 6, 9, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
)


@inner
def table(arguments):
    return view(arguments, WIDE, START, LENGTH)


@inner
def place(given, at):
    """Address, stride of samples, and that of channels in rows, of positions in columns."""
    return np.int64(given[at]), np.int64(given[at + 1]), np.int64(given[at + 2])


@inner
def sizes(given):
    """Channels, positions, parts, sets and samples."""
    return (
        np.int64(given[SIZES]),
        np.int64(given[SIZES + 1]),
        np.int64(given[SIZES + 2]),
        np.int64(given[SIZES + 3]),
        np.int64(given[SIZES + 4]),
    )


@inner
def sums_of(given, channels, parts, run, begin, core):
    """The place of the two sums of a run, of those from `begin` on."""
    slot = core * parts + run - begin if given[OWN] else np.float64(run)
    at = np.int64(slot) * 2 * channels
    return view(np.int64(given[ROOM]), WIDE, at, channels), view(np.int64(given[ROOM]), WIDE, at + channels, channels)


@inner
def scratch_of(zero, given, channels, core):
    """The four vectors of a core."""
    room, at = np.int64(given[SCRATCH]), 4 * core * channels
    return (
        view(room, zero, at, channels),
        view(room, zero, at + channels, channels),
        view(room, zero, at + 2 * channels, channels),
        view(room, zero, at + 3 * channels, channels),
    )


@inner
def spread(values, factor, out):
    """The numbers of sets, times a factor, over their channels."""
    members = out.size // values.size
    at = 0
    for g in range(values.size):
        value = values[g] * factor
        for _ in range(members):
            out[at] = value
            at += 1


@inner
def centers(zero, given, sets, n, center):
    """What is subtracted from every channel of a sample."""
    spread(view(np.int64(given[FOUND]), zero, n * sets, sets), cast(given[CENTERED], zero), center)


@inner
def scales(zero, given, sets, samples, n, scale):
    """What every channel of a sample is multiplied with."""
    spread(view(np.int64(given[FOUND]), zero, (2 * samples + n) * sets, sets), cast(1, zero), scale)
    if given[WEIGHT] != 0:
        weights = view(np.int64(given[WEIGHT]), zero, START, scale.size)
        for c in range(scale.size):
            scale[c] *= weights[c]


@Stage
def settle(zero, arguments, begin, end, core):
    """From the moments of the channels of a sample over its runs, as means and sums of squared deviations, to those of its sets."""
    given = table(arguments)
    channels, size, parts, sets, samples = sizes(given)
    n, members = begin // parts, channels // sets
    means, squares = sums_of(given, channels, parts, begin, begin, core)
    for part in range(1, parts):
        start, stop = size * part // parts, size * (part + 1) // parts
        share, both = (stop - start) / stop, start * (stop - start) / stop
        more, squares_more = sums_of(given, channels, parts, begin + part, begin, core)
        for c in range(channels):
            step = more[c] - means[c]
            squares[c] += squares_more[c] + step * step * both
            means[c] += step * share
    found = view(np.int64(given[FOUND]), zero, START, 3 * samples * sets)
    share, wide = 1.0 / (np.float64(members) * size), np.float64(size)
    for g in range(sets):
        middle, squared = 0.0, 0.0
        for c in range(g * members, (g + 1) * members):
            middle += means[c]
        middle /= members
        for c in range(g * members, (g + 1) * members):
            away = means[c] - middle
            squared += squares[c] + wide * (away * away)
        var, at = squared * share, n * sets + g
        power = var if given[CENTERED] else var + middle * middle
        found[at], found[at + samples * sets] = middle, var
        found[at + 2 * samples * sets] = 1.0 / np.sqrt(power + given[EPS])


@Stage
def pull(zero, arguments, begin, end, core):
    """From the sums over the runs of a sample to slope and offset of its sets, and to the sums of its task for weight and bias."""
    given = table(arguments)
    channels, size, parts, sets, samples = sizes(given)
    n, members = begin // parts, channels // sets
    totals, products = sums_of(given, channels, parts, begin, begin, core)
    for part in range(1, parts):
        more, products_more = sums_of(given, channels, parts, begin + part, begin, core)
        for c in range(channels):
            totals[c] += more[c]
            products[c] += products_more[c]
    inverses = view(np.int64(given[FOUND]), zero, (2 * samples + n) * sets, sets)
    factor = scratch_of(zero, given, channels, core)[0]
    spread(inverses, cast(1, zero), factor)
    tasks = np.int64(given[TASKS])
    task = (n * tasks + tasks - 1) // samples  # the last that begins at n or before
    sums = view(np.int64(given[SUMS]), WIDE, task * 2 * channels, 2 * channels)
    if samples * task // tasks == n:
        fill(sums, 0.0)
    for c in range(channels):
        sums[c] += products[c] * factor[c]
        sums[channels + c] += totals[c]
    if given[WEIGHT] != 0:
        weights = view(np.int64(given[WEIGHT]), zero, START, channels)
        for c in range(channels):
            totals[c] *= weights[c]
            products[c] *= weights[c]
    lines, share = view(np.int64(given[LINES]), zero, START, 2 * samples * sets), 1.0 / (np.float64(members) * size)
    for g in range(sets):
        inverse, total, product = np.float64(inverses[g]), 0.0, 0.0
        for c in range(g * members, (g + 1) * members):
            total += totals[c]
            product += products[c]
        lines[n * sets + g] = -product * inverse * inverse * inverse * share
        lines[(samples + n) * sets + g] = -total * inverse * share * given[CENTERED]

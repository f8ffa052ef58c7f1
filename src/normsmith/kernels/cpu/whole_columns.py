"""Standardizing in the columns layout: what is read for the moments of a sample is still in the cache when the sample is mapped.

A set is `channels // sets` adjacent channels of a sample, whose positions are summed in the `parts` runs of `columns.py`. What a set is
known by lies at `found`: mean, variance and one over the deviation, each N*sets. `weight` and `bias` are addresses, 0 where there is none.

Each direction has three steps: sums over runs, 2*C numbers a run, to `room`; from the sums to what sets are known by; the map of runs.
`standardize` and `unstandardize` take the steps for one sample after the other. Where samples are few, `whole_parallel.py` takes each step
for all of them. Runs are mapped last first: those that were summed last are the ones still in the cache.
"""

import numpy as np

from normsmith.kernels.cpu.columns import BLOCK, add, flush, guess
from normsmith.kernels.cpu.memory import cast, fill, sequential, view

HEIGHT = 4  # positions mapped at once: the numbers of a channel are then loaded once for four of them


@sequential
def spread(zero, values, factor, out):
    """The numbers of sets, times a factor, over their channels."""
    members = out.size // values.size
    if members == 1:
        for c in range(out.size):
            out[c] = cast(values[c] * factor, zero)
        return
    at = 0
    for g in range(values.size):
        value = cast(values[g] * factor, zero)
        for _ in range(members):
            out[at] = value
            at += 1


@sequential
def factors(zero, found, weight, channels, sets, samples, centered, n, center, scale):
    """Center and scale of every channel of a sample."""
    one = cast(1, zero)
    spread(zero, view(found, zero, n * sets, sets), one if centered else zero, center)
    spread(zero, view(found, zero, (2 * samples + n) * sets, sets), one, scale)
    if weight != 0:
        given = view(weight, zero, 0, channels)
        for c in range(channels):
            scale[c] *= given[c]


@sequential
def measure_runs(zero, x, xn, xs, channels, size, parts, room, slot, scratch, begin, end):
    """Mean and sum of squared deviations of every channel of these runs; but for the pivot the scratch is zero before and after."""
    pivot, first, second = scratch[:channels], scratch[channels : 2 * channels], scratch[2 * channels : 3 * channels]
    for run in range(begin, end):
        n, part = run // parts, run % parts
        start, stop = size * part // parts, size * (part + 1) // parts
        sums = room[slot + 2 * channels * (run - begin) :]
        means, squares = sums[:channels], sums[channels : 2 * channels]
        guess(zero, x, n * xn + start * xs, stop - start, xs, pivot)
        fill(means, 0.0)
        fill(squares, 0.0)
        for s in range(start, stop, BLOCK):
            add(zero, x, n * xn + s * xs, min(BLOCK, stop - s), xs, pivot, first, second)
            flush(first, means, zero)
            flush(second, squares, zero)
        share = 1.0 / (stop - start)
        for c in range(channels):
            rest = means[c] * share
            squares[c] = max(squares[c] - means[c] * rest, 0.0)
            means[c] = pivot[c] + rest


@sequential
def settle(zero, channels, size, parts, sets, samples, room, slot, found, eps, centered, n):
    """From the moments of the channels of a sample over its runs to those of its sets over all."""
    means, squares = room[slot : slot + channels], room[slot + channels : slot + 2 * channels]
    for part in range(1, parts):
        start, stop = size * part // parts, size * (part + 1) // parts
        share, both = (stop - start) / stop, start * (stop - start) / stop
        at = slot + part * 2 * channels
        means_more, squares_more = room[at : at + channels], room[at + channels : at + 2 * channels]
        for c in range(channels):
            step = means_more[c] - means[c]
            squares[c] += squares_more[c] + step * step * both
            means[c] += step * share
    members = channels // sets
    middles, variances = view(found, zero, n * sets, sets), view(found, zero, (samples + n) * sets, sets)
    inverses = view(found, zero, (2 * samples + n) * sets, sets)
    share = 1.0 / (np.float64(members) * size)
    for g in range(sets):
        middle, squared = 0.0, 0.0
        for c in range(g * members, (g + 1) * members):
            middle += means[c]
        middle /= members
        for c in range(g * members, (g + 1) * members):
            away = means[c] - middle
            squared += squares[c] + size * (away * away)
        var = squared * share
        middles[g], variances[g] = middle, var
        inverses[g] = 1.0 / np.sqrt((var if centered else var + middle * middle) + eps)


@sequential
def offsets(zero, bias, scratch):
    """The bias, if there is one, to the last third of the zeros of a scratch for `map_runs`."""
    channels = scratch.size // 3
    if bias != 0:
        given = view(bias, zero, 0, channels)
        for c in range(channels):
            scratch[2 * channels + c] = given[c]


@sequential
def map_runs(zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, found, centered, scratch, begin, end):
    """y = (x - center) * scale + bias, which is in the scratch."""
    center, scale, shift = scratch[:channels], scratch[channels : 2 * channels], scratch[2 * channels : 3 * channels]
    last = -1
    for run in range(end - 1, begin - 1, -1):
        n, part = run // parts, run % parts
        if n != last:
            factors(zero, found, weight, channels, sets, samples, centered, n, center, scale)
            last = n
        start, stop = size * part // parts, size * (part + 1) // parts
        whole = stop - (stop - start) % HEIGHT
        for s in range(start, whole, HEIGHT):
            source = view(x, zero, n * xn + s * xs, (HEIGHT - 1) * xs + channels)
            target = view(y, zero, n * yn + s * ys, (HEIGHT - 1) * ys + channels)
            for c in range(channels):
                m, k, b = center[c], scale[c], shift[c]
                for h in range(HEIGHT):
                    target[np.uintp(h * ys + c)] = (source[np.uintp(h * xs + c)] - m) * k + b
        for s in range(whole, stop):
            source, target = view(x, zero, n * xn + s * xs, channels), view(y, zero, n * yn + s * ys, channels)
            for c in range(channels):
                target[c] = (source[c] - center[c]) * scale[c] + shift[c]


@sequential
def standardize(
    zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, bias, found, eps, centered, begin, end
):  # fmt: skip
    """Moments and output of sample after sample."""
    room = np.empty(2 * channels * parts)
    scratch, more = np.full(3 * channels, zero), np.full(3 * channels, zero)
    offsets(zero, bias, more)
    for n in range(begin, end):
        first, last = n * parts, (n + 1) * parts
        measure_runs(zero, x, xn, xs, channels, size, parts, room, 0, scratch, first, last)
        settle(zero, channels, size, parts, sets, samples, room, 0, found, eps, centered, n)
        map_runs(zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, found, centered, more, first, last)


@sequential
def gather_runs(zero, g, gn, gs, x, xn, xs, channels, size, parts, sets, found, centered, room, slot, scratch, begin, end):
    """The sums of dy and of dy * (x - center) of every channel of these runs; but for the center the scratch is zero."""
    center, first, second = scratch[:channels], scratch[channels : 2 * channels], scratch[2 * channels : 3 * channels]
    last = -1
    for run in range(begin, end):
        n, part = run // parts, run % parts
        if n != last:
            spread(zero, view(found, zero, n * sets, sets), cast(1 if centered else 0, zero), center)
            last = n
        sums = room[slot + 2 * channels * (run - begin) :]
        totals, products = sums[:channels], sums[channels : 2 * channels]
        fill(totals, 0.0)
        fill(products, 0.0)
        stop = size * (part + 1) // parts
        for start in range(size * part // parts, stop, BLOCK):
            until = min(start + BLOCK, stop)
            whole = until - (until - start) % HEIGHT
            for s in range(start, whole, HEIGHT):
                grads = view(g, zero, n * gn + s * gs, (HEIGHT - 1) * gs + channels)
                rows = view(x, zero, n * xn + s * xs, (HEIGHT - 1) * xs + channels)
                for c in range(channels):
                    one, two, m = first[c], second[c], center[c]
                    for h in range(HEIGHT):
                        grad = grads[np.uintp(h * gs + c)]
                        one += grad
                        two += grad * (rows[np.uintp(h * xs + c)] - m)
                    first[c], second[c] = one, two
            for s in range(whole, until):
                grads, rows = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
                for c in range(channels):
                    first[c] += grads[c]
                    second[c] += grads[c] * (rows[c] - center[c])
            flush(first, totals, zero)
            flush(second, products, zero)


@sequential
def pull(zero, channels, size, parts, sets, samples, weight, room, slot, found, lines, centered, sums, task, n):
    """From the sums over the runs of a sample to slope and offset of every set; the task's sums for weight and bias grow."""
    members = channels // sets
    totals, products = room[slot : slot + channels], room[slot + channels : slot + 2 * channels]
    for part in range(1, parts):
        at = slot + part * 2 * channels
        for c in range(channels):
            totals[c] += room[at + c]
            products[c] += room[at + channels + c]
    at, share = task * 2 * channels, 1.0 / (np.float64(members) * size)
    d_weight, d_bias = sums[at : at + channels], sums[at + channels : at + 2 * channels]
    inverses = view(found, zero, (2 * samples + n) * sets, sets)
    for g in range(sets):
        inverse = np.float64(inverses[g])
        for c in range(g * members, (g + 1) * members):
            d_weight[c] += products[c] * inverse
            d_bias[c] += totals[c]
    if weight != 0:
        weights = view(weight, zero, 0, channels)
        for c in range(channels):
            totals[c] *= weights[c]
            products[c] *= weights[c]
    for g in range(sets):
        inverse, total, product = np.float64(inverses[g]), 0.0, 0.0
        for c in range(g * members, (g + 1) * members):
            total += totals[c]
            product += products[c]
        lines[n * sets + g] = -product * inverse * inverse * inverse * share
        lines[(samples + n) * sets + g] = -total * inverse * share if centered else 0.0


@sequential
def map_runs_back(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered, scratch, begin, end
):  # fmt: skip
    """dx = dy * scale + ((x - center) * slope + offset)."""
    center, scale = scratch[:channels], scratch[channels : 2 * channels]
    slope, offset = scratch[2 * channels : 3 * channels], scratch[3 * channels : 4 * channels]
    one, last = cast(1, zero), -1
    for run in range(end - 1, begin - 1, -1):
        n, part = run // parts, run % parts
        if n != last:
            factors(zero, found, weight, channels, sets, samples, centered, n, center, scale)
            spread(zero, lines[n * sets : (n + 1) * sets], one, slope)
            spread(zero, lines[(samples + n) * sets : (samples + n + 1) * sets], one, offset)
            last = n
        start, stop = size * part // parts, size * (part + 1) // parts
        whole = stop - (stop - start) % HEIGHT
        for s in range(start, whole, HEIGHT):
            grads = view(g, zero, n * gn + s * gs, (HEIGHT - 1) * gs + channels)
            rows = view(x, zero, n * xn + s * xs, (HEIGHT - 1) * xs + channels)
            out = view(d, zero, n * dn + s * ds, (HEIGHT - 1) * ds + channels)
            for c in range(channels):
                m, k, a, o = center[c], scale[c], slope[c], offset[c]
                for h in range(HEIGHT):
                    moved = (rows[np.uintp(h * xs + c)] - m) * a + o
                    out[np.uintp(h * ds + c)] = grads[np.uintp(h * gs + c)] * k + moved
        for s in range(whole, stop):
            grads, rows = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
            out = view(d, zero, n * dn + s * ds, channels)
            for c in range(channels):
                out[c] = grads[c] * scale[c] + ((rows[c] - center[c]) * slope[c] + offset[c])


@sequential
def unstandardize(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered, sums, tasks, begin, end
):  # fmt: skip
    """The gradient of sample after sample, and for each task, which is some samples, the sums for weight and bias."""
    room, scratch, more = np.empty(2 * channels * parts), np.full(3 * channels, zero), np.full(4 * channels, zero)
    for task in range(begin, end):
        fill(sums[task * 2 * channels : (task + 1) * 2 * channels], 0.0)
        for n in range(samples * task // tasks, samples * (task + 1) // tasks):
            first, last = n * parts, (n + 1) * parts
            gather_runs(zero, g, gn, gs, x, xn, xs, channels, size, parts, sets, found, centered, room, 0, scratch, first, last)
            pull(zero, channels, size, parts, sets, samples, weight, room, 0, found, lines, centered, sums, task, n)
            map_runs_back(
                zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered, more,
                first, last
            )  # fmt: skip


@sequential
def merge(zero, channels, sums, tasks, out):
    """The sums of all tasks, in order: of the weight, then of the bias."""
    for task in range(1, tasks):
        for c in range(2 * channels):
            sums[c] += sums[task * 2 * channels + c]
    given = view(out, zero, 0, 2 * channels)
    for c in range(2 * channels):
        given[c] = sums[c]


@sequential
def unstandardize_all(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, centered, out, tasks
):  # fmt: skip
    """The whole backward on one core."""
    lines, sums = np.empty(2 * samples * sets), np.empty(2 * channels * tasks)
    unstandardize(
        zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered, sums, tasks, 0, tasks
    )  # fmt: skip
    merge(zero, channels, sums, tasks, out)

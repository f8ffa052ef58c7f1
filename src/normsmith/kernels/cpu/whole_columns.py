"""The stages of `whole_sets.py` that read x, in the columns layout; runs are those of `columns.py`.

They are transferred last first: those summed last are the ones still in the cache.
"""

import numpy as np

from normsmith.kernels.cpu.columns import BLOCK, add, flush, guess
from normsmith.kernels.cpu.memory import cast, fill, view
from normsmith.kernels.cpu.stages import Stage
from normsmith.kernels.cpu.whole_sets import (
    BIAS,
    DY,
    LINES,
    START,
    X,
    Y,
    centers,
    place,
    scales,
    scratch_of,
    sizes,
    spread,
    sums_of,
    table,
)

HEIGHT = 4  # positions mapped at once: the numbers of a channel are then loaded once for four of them


@Stage
def measure(zero, arguments, begin, end, core):
    """Mean and sum of squared deviations of every channel of these runs."""
    given = table(arguments)
    x, xn, xs = place(given, X)
    channels, size, parts, _, _ = sizes(given)
    pivot, first, second, _ = scratch_of(zero, given, channels, core)
    fill(first, zero)
    fill(second, zero)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        start, stop = size * part // parts, size * (part + 1) // parts
        means, squares = sums_of(given, channels, parts, run, begin, core)
        fill(means, 0.0)
        fill(squares, 0.0)
        guess(zero, x, n * xn + start * xs, stop - start, xs, pivot)
        for s in range(start, stop, BLOCK):
            add(zero, x, n * xn + s * xs, min(BLOCK, stop - s), xs, pivot, first, second)
            flush(first, means, zero)
            flush(second, squares, zero)
        share = 1.0 / (stop - start)
        for c in range(channels):
            rest = means[c] * share
            squares[c] = max(squares[c] - means[c] * rest, 0.0)
            means[c] = pivot[c] + rest


@Stage
def transfer(zero, arguments, begin, end, core):
    """y = (x - center) * scale + bias."""
    given = table(arguments)
    x, xn, xs = place(given, X)
    y, yn, ys = place(given, Y)
    channels, size, parts, sets, samples = sizes(given)
    center, scale, shift, _ = scratch_of(zero, given, channels, core)
    if given[BIAS] != 0:
        shift = view(np.int64(given[BIAS]), zero, START, channels)
    else:
        fill(shift, zero)
    centers(zero, given, sets, begin // parts, center)
    scales(zero, given, sets, samples, begin // parts, scale)
    for run in range(end - 1, begin - 1, -1):
        n, part = run // parts, run % parts
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


@Stage
def gather(zero, arguments, begin, end, core):
    """The sums of dy and of dy * (x - center) of every channel of these runs."""
    given = table(arguments)
    g, gn, gs = place(given, DY)
    x, xn, xs = place(given, X)
    channels, size, parts, sets, _ = sizes(given)
    center, first, second, _ = scratch_of(zero, given, channels, core)
    fill(first, zero)
    fill(second, zero)
    centers(zero, given, sets, begin // parts, center)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        totals, products = sums_of(given, channels, parts, run, begin, core)
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


@Stage
def back(zero, arguments, begin, end, core):
    """dx = dy * scale + ((x - center) * slope + offset), to the place of y."""
    given = table(arguments)
    g, gn, gs = place(given, DY)
    x, xn, xs = place(given, X)
    d, dn, ds = place(given, Y)
    channels, size, parts, sets, samples = sizes(given)
    center, scale, slope, offset = scratch_of(zero, given, channels, core)
    n = begin // parts
    centers(zero, given, sets, n, center)
    scales(zero, given, sets, samples, n, scale)
    spread(view(np.int64(given[LINES]), zero, n * sets, sets), cast(1, zero), slope)
    spread(view(np.int64(given[LINES]), zero, (samples + n) * sets, sets), cast(1, zero), offset)
    for run in range(end - 1, begin - 1, -1):
        part = run % parts
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

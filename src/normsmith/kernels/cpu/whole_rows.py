"""The stages of `whole_sets.py` that read x, in the rows layout; a sample is one run."""

import numpy as np

from normsmith.kernels.cpu.memory import cast, fill, view
from normsmith.kernels.cpu.rows import BLOCK, deviations, guess, merged_with
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


@Stage
def measure(zero, arguments, begin, end, core):
    """Mean and sum of squared deviations of every channel of a sample."""
    given = table(arguments)
    x, xn, xc = place(given, X)
    channels, size, parts, _, _ = sizes(given)
    means, squares = sums_of(given, channels, parts, begin, begin, core)
    for c in range(channels):
        row = view(x, zero, begin * xn + c * xc, size)
        held, middle, squared = 0.0, 0.0, 0.0
        for start in range(0, size, BLOCK):
            block = row[start : start + BLOCK]
            pivot = guess(block, zero)
            first, second = deviations(block, zero, pivot)
            if start == 0:
                held = np.float64(block.size)
                rest = first / held
                middle, squared = pivot + rest, max(second - first * rest, 0.0)
            else:
                held, middle, squared = merged_with(held, middle, squared, np.float64(block.size), pivot, first, second)
        means[c], squares[c] = middle, squared


@Stage
def transfer(zero, arguments, begin, end, core):
    """y = (x - center) * scale + bias."""
    given = table(arguments)
    x, xn, xc = place(given, X)
    y, yn, yc = place(given, Y)
    channels, size, _, sets, samples = sizes(given)
    center, scale, shift, _ = scratch_of(zero, given, channels, core)
    if given[BIAS] != 0:
        shift = view(np.int64(given[BIAS]), zero, START, channels)
    else:
        fill(shift, zero)
    centers(zero, given, sets, begin, center)
    scales(zero, given, sets, samples, begin, scale)
    for c in range(channels - 1, -1, -1):
        m, k, b = center[c], scale[c], shift[c]
        source, target = view(x, zero, begin * xn + c * xc, size), view(y, zero, begin * yn + c * yc, size)
        for i in range(size):
            target[i] = (source[i] - m) * k + b


@Stage
def gather(zero, arguments, begin, end, core):
    """The sums of dy and of dy * (x - center) of every channel of a sample."""
    given = table(arguments)
    g, gn, gc = place(given, DY)
    x, xn, xc = place(given, X)
    channels, size, parts, sets, _ = sizes(given)
    center, _, _, _ = scratch_of(zero, given, channels, core)
    centers(zero, given, sets, begin, center)
    totals, products = sums_of(given, channels, parts, begin, begin, core)
    for c in range(channels):
        grad, row, m = view(g, zero, begin * gn + c * gc, size), view(x, zero, begin * xn + c * xc, size), center[c]
        total, product = 0.0, 0.0
        for start in range(0, size, BLOCK):
            grads, values = grad[start : start + BLOCK], row[start : start + BLOCK]
            first, second = zero, zero
            for i in range(grads.size):
                first += grads[i]
                second += grads[i] * (values[i] - m)
            total += first
            product += second
        totals[c], products[c] = total, product


@Stage
def back(zero, arguments, begin, end, core):
    """dx = dy * scale + ((x - center) * slope + offset), to the place of y."""
    given = table(arguments)
    g, gn, gc = place(given, DY)
    x, xn, xc = place(given, X)
    d, dn, dc = place(given, Y)
    channels, size, _, sets, samples = sizes(given)
    center, scale, slope, offset = scratch_of(zero, given, channels, core)
    centers(zero, given, sets, begin, center)
    scales(zero, given, sets, samples, begin, scale)
    spread(view(np.int64(given[LINES]), zero, begin * sets, sets), cast(1, zero), slope)
    spread(view(np.int64(given[LINES]), zero, (samples + begin) * sets, sets), cast(1, zero), offset)
    for c in range(channels - 1, -1, -1):
        m, k, a, o = center[c], scale[c], slope[c], offset[c]
        grad, row = view(g, zero, begin * gn + c * gc, size), view(x, zero, begin * xn + c * xc, size)
        out = view(d, zero, begin * dn + c * dc, size)
        for i in range(size):
            out[i] = grad[i] * k + ((row[i] - m) * a + o)

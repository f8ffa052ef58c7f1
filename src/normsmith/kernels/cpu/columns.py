"""The loops of the columns layout: the C channels of a position are adjacent, position s of sample n starts at n*xn + s*xs.

A sample's S positions are cut into `parts` runs of a few thousand at most. Each function treats the runs `begin` to `end` of the
N*parts, in order, on one core; `parallel.py` hands out the ranges. What a cell reads besides x (`center`, `low`, ...) lies at
n*step + c: step is C, or 0 where all samples share it. Without bounds `low` is None, and
`kind` without an activation: see `bend.py`. Sums are float64, C a run; `merge.py` brings the
runs together.
"""

import numpy as np

from normsmith.kernels.cpu.bend import bent, through
from normsmith.kernels.cpu.memory import cast, fill, inner, sequential, view

BLOCK = 128  # positions summed in their own type before they go into the float64 sums
HEIGHT = 8  # positions added at once: the running sums are then loaded and stored once for eight of them
WIDE = np.float64(0)


@inner
def guess(zero, x, start, positions, xs, pivot):
    """A guess at the mean of every channel in a run, from four of its positions, as in `rows.py`."""
    quarter = positions // 4 * xs
    one, two = view(x, zero, start, pivot.size), view(x, zero, start + quarter, pivot.size)
    three, four = view(x, zero, start + 2 * quarter, pivot.size), view(x, zero, start + 3 * quarter, pivot.size)
    for c in range(pivot.size):
        pivot[c] = (one[c] + two[c] + three[c] + four[c]) * cast(0.25, zero)


@inner
def _guess_within(zero, x, start, positions, xs, low, high, pivot, found):
    """The same from those of the four that lie between the bounds, or else from the first element that does."""
    one = cast(1, zero)
    for c in range(pivot.size):
        pivot[c] = zero
    for k in range(4):
        row = view(x, zero, start + k * (positions // 4) * xs, pivot.size)
        for c in range(pivot.size):
            if low[c] < row[c] and row[c] < high[c]:
                pivot[c] += row[c]
                found[c] += one
    missing = 0
    for c in range(pivot.size):
        if found[c] > 0:
            pivot[c] /= found[c]
        else:
            missing += 1
    for s in range(positions if missing else 0):
        row = view(x, zero, start + s * xs, pivot.size)
        for c in range(pivot.size):
            if found[c] == 0 and low[c] < row[c] and row[c] < high[c]:
                pivot[c] = row[c]
                found[c] = one
    for c in range(pivot.size):
        found[c] = zero


@inner
def add(zero, x, start, height, xs, pivot, first, second):
    """Add the deviations and squared deviations from the pivot over a block of positions."""
    channels = pivot.size
    whole = height - height % HEIGHT
    for s in range(0, whole, HEIGHT):
        rows = view(x, zero, start + s * xs, (HEIGHT - 1) * xs + channels)
        for c in range(channels):
            one, two = first[c], second[c]
            for k in range(HEIGHT):
                deviation = rows[np.uintp(k * xs + c)] - pivot[c]
                one += deviation
                two += deviation * deviation
            first[c], second[c] = one, two
    for s in range(whole, height):
        row = view(x, zero, start + s * xs, channels)
        for c in range(channels):
            deviation = row[c] - pivot[c]
            first[c] += deviation
            second[c] += deviation * deviation


@inner
def _add_within(zero, x, start, height, xs, pivot, low, high, inside, first, second):
    """The same for the elements strictly between the bounds, which are counted."""
    one = cast(1, zero)
    for s in range(height):
        row = view(x, zero, start + s * xs, pivot.size)
        for c in range(pivot.size):
            keep = low[c] < row[c] and row[c] < high[c]
            deviation = row[c] - pivot[c] if keep else zero
            first[c] += deviation
            second[c] += deviation * deviation
            inside[c] += one if keep else zero


@inner
def flush(narrow, wide, zero):
    """Move the sums of a block into those of the run."""
    for c in range(narrow.size):
        wide[c] += narrow[c]
        narrow[c] = zero


@sequential
def moments(zero, x, xn, xs, channels, size, parts, low, high, step, count, mean, var, begin, end):
    """Count, mean and variance of every channel of every run, over the elements strictly between the cell's bounds.

    The results hold the sums until the end of the run.
    """
    pivot, inside = np.full(channels, zero), np.full(channels, zero)
    first, second = np.full(channels, zero), np.full(channels, zero)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        start, stop = size * part // parts, size * (part + 1) // parts
        counts = view(count, WIDE, run * channels, channels)
        means, squares = view(mean, WIDE, run * channels, channels), view(var, WIDE, run * channels, channels)
        fill(counts, 0.0)
        fill(means, 0.0)
        fill(squares, 0.0)
        if low is None:
            guess(zero, x, n * xn + start * xs, stop - start, xs, pivot)
        else:
            lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
            _guess_within(zero, x, n * xn + start * xs, stop - start, xs, lower, upper, pivot, inside)
        for s in range(start, stop, BLOCK):
            at, height = n * xn + s * xs, min(BLOCK, stop - s)
            if low is None:
                add(zero, x, at, height, xs, pivot, first, second)
            else:
                _add_within(zero, x, at, height, xs, pivot, lower, upper, inside, first, second)
                flush(inside, counts, zero)
            flush(first, means, zero)
            flush(second, squares, zero)
        for c in range(channels):
            if low is None:
                counts[c] = stop - start
            share = 1.0 / max(counts[c], 1.0)
            rest = means[c] * share
            squares[c] = max(squares[c] * share - rest * rest, 0.0)
            means[c] = pivot[c] + rest


@sequential
def affine(zero, x, xn, xs, y, yn, ys, channels, size, parts, center, scale, bias, kind, level, step, begin, end):
    """y = (x - center) * scale + bias, bent where there is an activation."""
    for run in range(begin, end):
        n, part = run // parts, run % parts
        m, k = view(center, zero, n * step, channels), view(scale, zero, n * step, channels)
        b = view(bias, zero, n * step, channels)
        for s in range(size * part // parts, size * (part + 1) // parts):
            source, target = view(x, zero, n * xn + s * xs, channels), view(y, zero, n * yn + s * ys, channels)
            if kind is None:
                for c in range(channels):
                    target[c] = (source[c] - m[c]) * k[c] + b[c]
            else:
                v = view(level, zero, n * step, channels)
                for c in range(channels):
                    target[c] = bent(kind, (source[c] - m[c]) * k[c] + b[c], v[c], zero)


@sequential
def grad_sums(
    zero,
    g, gn, gs, x, xn, xs, channels, size, parts, center, low, high, scale, bias, kind, level, step, total, product, below, begin, end
):  # fmt: skip
    """The sums of dy and of dy * (x - center) over every channel of every run, between the cell's bounds.

    With an activation dy is what reaches its input; `below`, unless None, is the sum of what does not.
    """
    first, second, third = np.full(channels, zero), np.full(channels, zero), np.full(channels, zero)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        totals, products = view(total, WIDE, run * channels, channels), view(product, WIDE, run * channels, channels)
        fill(totals, 0.0)
        fill(products, 0.0)
        if below is not None:
            belows = view(below, WIDE, run * channels, channels)
            fill(belows, 0.0)
        m = view(center, zero, n * step, channels)
        stop = size * (part + 1) // parts
        for start in range(size * part // parts, stop, BLOCK):
            # One position at a time: eight at once, as in `add`, are too many streams where both tensors come from memory.
            for s in range(start, min(start + BLOCK, stop)):
                grad, row = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
                if kind is not None:
                    k, b = view(scale, zero, n * step, channels), view(bias, zero, n * step, channels)
                    v = view(level, zero, n * step, channels)
                    for c in range(channels):
                        kept = through(kind, grad[c], (row[c] - m[c]) * k[c] + b[c], v[c], zero)
                        first[c] += kept
                        second[c] += kept * (row[c] - m[c])
                        if below is not None:
                            third[c] += grad[c] - kept
                elif low is None:
                    for c in range(channels):
                        first[c] += grad[c]
                        second[c] += grad[c] * (row[c] - m[c])
                else:
                    lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
                    for c in range(channels):
                        inside = lower[c] < row[c] and row[c] < upper[c]
                        first[c] += grad[c] if inside else zero
                        second[c] += grad[c] * (row[c] - m[c]) if inside else zero
            flush(first, totals, zero)
            flush(second, products, zero)
            if below is not None:
                flush(third, belows, zero)


@sequential
def grad_input(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, scale, slope, pivot, offset, low, high, center, bias, kind, level, step,
    begin, end
):  # fmt: skip
    """dx = dy * scale + ((x - pivot) * slope + offset), the bracket only for elements strictly between the bounds.

    With an activation dy is what reaches its input.
    """
    for run in range(begin, end):
        n, part = run // parts, run % parts
        k, a = view(scale, zero, n * step, channels), view(slope, zero, n * step, channels)
        p, o = view(pivot, zero, n * step, channels), view(offset, zero, n * step, channels)
        if low is not None:
            lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
        if kind is not None:
            m, b = view(center, zero, n * step, channels), view(bias, zero, n * step, channels)
            v = view(level, zero, n * step, channels)
        for s in range(size * part // parts, size * (part + 1) // parts):
            grad, row = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
            target = view(d, zero, n * dn + s * ds, channels)
            if kind is not None:
                for c in range(channels):
                    kept = through(kind, grad[c], (row[c] - m[c]) * k[c] + b[c], v[c], zero) * k[c]
                    if low is None:
                        target[c] = kept + ((row[c] - p[c]) * a[c] + o[c])
                    else:
                        target[c] = kept + ((row[c] - p[c]) * a[c] + o[c] if lower[c] < row[c] and row[c] < upper[c] else zero)
            elif low is None:
                for c in range(channels):
                    target[c] = grad[c] * k[c] + ((row[c] - p[c]) * a[c] + o[c])
            else:
                for c in range(channels):
                    moved = (row[c] - p[c]) * a[c] + o[c] if lower[c] < row[c] and row[c] < upper[c] else zero
                    target[c] = grad[c] * k[c] + moved

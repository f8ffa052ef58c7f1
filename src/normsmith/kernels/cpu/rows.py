"""The loops of the rows layout: the S elements of a cell are adjacent, the cell of sample n and channel c starts at n*xn + c*xc.

Each function treats the cells `begin` to `end` of the N*C, in order, on one core; `parallel.py` hands out the ranges. What a cell
reads besides x (`center`, `low`, ...) lies at n*step + c: step is C, or 0 where all samples share it. Without bounds `low` is None, and
`kind` without an activation: see `bend.py`.
Results that are sums (`count, mean, squares, total, ...`) are float64, one a cell.
"""

import numpy as np

from normsmith.kernels.cpu.bend import bent, through
from normsmith.kernels.cpu.memory import cast, inner, sequential, view

BLOCK = 4096  # elements summed in their own type before they are merged in float64
WIDE = np.float64(0)


@inner
def guess(block, zero):
    """A guess at the mean from four elements, to sum deviations from.

    The closer it is, the less cancels in the variance. Were all four the worst outliers there can be, the variance would still be
    right to size / 4 roundings.
    """
    quarter = block.size // 4
    return (block[0] + block[quarter] + block[2 * quarter] + block[3 * quarter]) * cast(0.25, zero)


@inner
def _guess_within(block, zero, low, high):
    """The same from those of the four that lie between the bounds, or else from the first element that does."""
    one = cast(1, zero)
    total = zero
    found = zero
    for k in range(4):
        value = block[k * (block.size // 4)]
        if low < value < high:
            total += value
            found += one
    if found > 0:
        return total / found
    for i in range(block.size):
        if low < block[i] and block[i] < high:
            return block[i]
    return zero


@inner
def deviations(block, zero, pivot):
    """The sums of deviation and squared deviation from the pivot."""
    first = zero
    second = zero
    for i in range(block.size):
        deviation = block[i] - pivot
        first += deviation
        second += deviation * deviation
    return first, second


@inner
def _sums_within(block, zero, pivot, low, high):
    """How many elements lie between the bounds, and their sums of deviation and squared deviation from the pivot."""
    one = cast(1, zero)
    inside = zero
    first = zero
    second = zero
    for i in range(block.size):
        keep = low < block[i] and block[i] < high
        deviation = block[i] - pivot if keep else zero
        first += deviation
        second += deviation * deviation
        inside += one if keep else zero
    return inside, first, second


@inner
def merged_with(count, mean, squares, inside, pivot, first, second):
    """Count, mean and summed squares of a cell with one more block, in float64."""
    rest = first / inside
    step = pivot + rest - mean
    merged = count + inside
    squares += max(second - first * rest, 0.0) + step * step * count * inside / merged
    return merged, mean + step * inside / merged, squares


@sequential
def moments(zero, x, xn, xc, channels, size, low, high, step, count, mean, var, begin, end):
    """Count, mean and variance of every cell, over the elements strictly between its bounds."""
    counts, means, variances = view(count, WIDE, 0, end), view(mean, WIDE, 0, end), view(var, WIDE, 0, end)
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        row = view(x, zero, n * xn + c * xc, size)
        if low is None:
            # The first block by itself, most cells have no other: merging it would cost a short cell more than its sums.
            held = np.float64(min(size, BLOCK))
            pivot = guess(row[:BLOCK], zero)
            first, second = deviations(row[:BLOCK], zero, pivot)
            rest = first / held
            middle, squares = pivot + rest, max(second - first * rest, 0.0)
            for start in range(BLOCK, size, BLOCK):
                block = row[start : start + BLOCK]
                pivot = guess(block, zero)
                first, second = deviations(block, zero, pivot)
                held, middle, squares = merged_with(held, middle, squares, np.float64(block.size), pivot, first, second)
        else:
            at = n * step + c
            lower, upper = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
            held, middle, squares = 0.0, 0.0, 0.0
            for start in range(0, size, BLOCK):
                block = row[start : start + BLOCK]
                pivot = _guess_within(block, zero, lower, upper)
                inside, first, second = _sums_within(block, zero, pivot, lower, upper)
                if inside > 0:
                    held, middle, squares = merged_with(held, middle, squares, np.float64(inside), pivot, first, second)
        counts[cell], means[cell], variances[cell] = held, middle, squares / max(held, 1.0)


@sequential
def affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, bias, kind, level, step, begin, end):
    """y = (x - center) * scale + bias, bent where there is an activation."""
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        m, s, b = view(center, zero, at, 1)[0], view(scale, zero, at, 1)[0], view(bias, zero, at, 1)[0]
        source, target = view(x, zero, n * xn + c * xc, size), view(y, zero, n * yn + c * yc, size)
        if kind is None:
            for i in range(size):
                target[i] = (source[i] - m) * s + b
        else:
            v = view(level, zero, at, 1)[0]
            for i in range(size):
                target[i] = bent(kind, (source[i] - m) * s + b, v, zero)


@sequential
def grad_sums(
    zero,
    g,
    gn,
    gc,
    x,
    xn,
    xc,
    channels,
    size,
    center,
    low,
    high,
    scale,
    bias,
    kind,
    level,
    step,
    total,
    product,
    below,
    begin,
    end,
):
    """The sums of dy and of dy * (x - center) over every cell, over the elements strictly between its bounds.

    With an activation dy is what reaches its input; `below`, unless None, is the sum of what does not.
    """
    totals, products = view(total, WIDE, 0, end), view(product, WIDE, 0, end)
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        m = view(center, zero, at, 1)[0]
        grad, row = view(g, zero, n * gn + c * gc, size), view(x, zero, n * xn + c * xc, size)
        sums, sums_product, sums_below = 0.0, 0.0, 0.0
        for start in range(0, size, BLOCK):
            grads, values = grad[start : start + BLOCK], row[start : start + BLOCK]
            first = zero
            second = zero
            third = zero
            if kind is not None:
                k, b, v = view(scale, zero, at, 1)[0], view(bias, zero, at, 1)[0], view(level, zero, at, 1)[0]
                for i in range(grads.size):
                    kept = through(kind, grads[i], (values[i] - m) * k + b, v, zero)
                    first += kept
                    second += kept * (values[i] - m)
                    if below is not None:
                        third += grads[i] - kept
            elif low is None:
                for i in range(grads.size):
                    first += grads[i]
                    second += grads[i] * (values[i] - m)
            else:
                lower, upper = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
                for i in range(grads.size):
                    inside = lower < values[i] and values[i] < upper
                    first += grads[i] if inside else zero
                    second += grads[i] * (values[i] - m) if inside else zero
            sums += first
            sums_product += second
            sums_below += third
        totals[cell], products[cell] = sums, sums_product
        if below is not None:
            view(below, WIDE, cell, 1)[0] = sums_below


@sequential
def grad_input(
    zero,
    g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, low, high, center, bias, kind, level, step, begin, end
):  # fmt: skip
    """dx = dy * scale + ((x - pivot) * slope + offset), the bracket only for elements strictly between the bounds.

    With an activation dy is what reaches its input.
    """
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        s, k = view(scale, zero, at, 1)[0], view(slope, zero, at, 1)[0]
        p, o = view(pivot, zero, at, 1)[0], view(offset, zero, at, 1)[0]
        grad, row = view(g, zero, n * gn + c * gc, size), view(x, zero, n * xn + c * xc, size)
        target = view(d, zero, n * dn + c * dc, size)
        if low is not None:
            lower, upper = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
        if kind is not None:
            m, b, v = view(center, zero, at, 1)[0], view(bias, zero, at, 1)[0], view(level, zero, at, 1)[0]
            for i in range(size):
                kept = through(kind, grad[i], (row[i] - m) * s + b, v, zero) * s
                if low is None:
                    target[i] = kept + ((row[i] - p) * k + o)
                else:
                    target[i] = kept + ((row[i] - p) * k + o if lower < row[i] and row[i] < upper else zero)
        elif low is None:
            for i in range(size):
                target[i] = grad[i] * s + ((row[i] - p) * k + o)
        else:
            for i in range(size):
                moved = (row[i] - p) * k + o if lower < row[i] and row[i] < upper else zero
                target[i] = grad[i] * s + moved

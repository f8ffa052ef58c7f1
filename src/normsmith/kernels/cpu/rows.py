"""The loops of the rows layout: the S elements of a cell are adjacent, the cell of sample n and channel c starts at n*xn + c*xc.

Each function treats the cells `begin` to `end` of the N*C, in order, on one core; `parallel.py` hands out the ranges. What a cell
reads besides x (`center`, `low`, ...) lies at n*step + c: step is C, or 0 where all samples share it. Without bounds `low` is None.
Results that are sums (`count, mean, squares, total, ...`) are float64, one a cell.
"""

import numpy as np

from normsmith.kernels.cpu.memory import sequential, view

BLOCK = 4096  # elements between two merges; they stay in the first-level cache, where the second pass is nearly free
WIDE = np.float64(0)


@sequential
def _cell(row, zero, low, high):
    """Count, mean and variance of one cell: two passes a block, around the block's own mean; blocks merged in float64."""
    count = 0.0
    mean = 0.0
    squares = 0.0
    for start in range(0, row.size, BLOCK):
        block = row[start : start + BLOCK]
        total = zero
        inside = zero + block.size
        if low is None:
            for i in range(block.size):
                total += block[i]
        else:
            inside = zero
            for i in range(block.size):
                keep = low < block[i] and block[i] < high
                total += block[i] if keep else zero
                inside += 1 if keep else 0
            if inside == 0:
                continue
        pivot = total / inside
        first = zero
        second = zero
        if low is None:
            for i in range(block.size):
                deviation = block[i] - pivot
                first += deviation
                second += deviation * deviation
        else:
            for i in range(block.size):
                deviation = block[i] - pivot if low < block[i] and block[i] < high else zero
                first += deviation
                second += deviation * deviation
        rest = np.float64(first / inside)  # what rounding left out of the pivot
        merged = count + inside
        step = pivot + rest - mean
        squares += second - first * rest + step * step * count * inside / merged
        mean += step * inside / merged
        count = merged
    return count, mean, squares / max(count, 1.0)


@sequential
def moments(zero, x, xn, xc, channels, size, low, high, step, count, mean, var, begin, end):
    """Count, mean and variance of every cell, over the elements strictly between its bounds."""
    counts, means, variances = view(count, WIDE, 0, end), view(mean, WIDE, 0, end), view(var, WIDE, 0, end)
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        row = view(x, zero, n * xn + c * xc, size)
        if low is None:
            counts[cell], means[cell], variances[cell] = _cell(row, zero, None, None)
        else:
            at = n * step + c
            bounds = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
            counts[cell], means[cell], variances[cell] = _cell(row, zero, bounds[0], bounds[1])


@sequential
def affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, bias, step, begin, end):
    """y = (x - center) * scale + bias."""
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        m, s, b = view(center, zero, at, 1)[0], view(scale, zero, at, 1)[0], view(bias, zero, at, 1)[0]
        source, target = view(x, zero, n * xn + c * xc, size), view(y, zero, n * yn + c * yc, size)
        for i in range(size):
            target[i] = (source[i] - m) * s + b


@sequential
def grad_sums(zero, g, gn, gc, x, xn, xc, channels, size, center, low, high, step, total, product, begin, end):
    """The sums of dy and of dy * (x - center) over every cell, over the elements strictly between its bounds."""
    totals, products = view(total, WIDE, 0, end), view(product, WIDE, 0, end)
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        m = view(center, zero, at, 1)[0]
        grad, row = view(g, zero, n * gn + c * gc, size), view(x, zero, n * xn + c * xc, size)
        sums = 0.0
        sums_product = 0.0
        for start in range(0, size, BLOCK):
            grads, values = grad[start : start + BLOCK], row[start : start + BLOCK]
            first = zero
            second = zero
            if low is None:
                for i in range(grads.size):
                    first += grads[i]
                    second += grads[i] * (values[i] - m)
            else:
                lower, upper = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
                for i in range(grads.size):
                    kept = grads[i] if lower < values[i] and values[i] < upper else zero
                    first += kept
                    second += kept * (values[i] - m)
            sums += first
            sums_product += second
        totals[cell] = sums
        products[cell] = sums_product


@sequential
def grad_input(zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, low, high, step, begin, end):
    """dx = dy * scale + ((x - pivot) * slope + offset), the bracket only for elements strictly between the bounds."""
    for cell in range(begin, end):
        n, c = cell // channels, cell % channels
        at = n * step + c
        s, k = view(scale, zero, at, 1)[0], view(slope, zero, at, 1)[0]
        p, o = view(pivot, zero, at, 1)[0], view(offset, zero, at, 1)[0]
        grad, row = view(g, zero, n * gn + c * gc, size), view(x, zero, n * xn + c * xc, size)
        target = view(d, zero, n * dn + c * dc, size)
        if low is None:
            for i in range(size):
                target[i] = grad[i] * s + ((row[i] - p) * k + o)
        else:
            lower, upper = view(low, zero, at, 1)[0], view(high, zero, at, 1)[0]
            for i in range(size):
                moved = (row[i] - p) * k + o if lower < row[i] and row[i] < upper else zero
                target[i] = grad[i] * s + moved

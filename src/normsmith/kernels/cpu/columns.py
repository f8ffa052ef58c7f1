"""The loops of the columns layout: the C channels of a position are adjacent, position s of sample n starts at n*xn + s*xs.

A sample's S positions are cut into `parts` runs; each function treats the runs `begin` to `end` of the N*parts, in order, on one
core; `parallel.py` hands out the ranges. What a cell reads besides x (`center`, `low`, ...) lies at n*step + c: step is C, or 0 where
all samples share it. Without bounds `low` is None. Sums are float64, C a run; `merge.py` brings the runs together.
"""

import numpy as np

from normsmith.kernels.cpu.memory import sequential, view

BLOCK = 4096  # elements between two merges, as in `rows.py`
WIDE = np.float64(0)


@sequential
def moments(  # noqa: PLR0912  (each branch on `low` is one for the compiler)
    zero, x, xn, xs, channels, size, parts, low, high, step, count, mean, var, begin, end
):
    """Count, mean and variance of every channel of every run, over the elements strictly between the cell's bounds."""
    height = max(1, BLOCK // channels)
    total, inside = np.full(channels, zero), np.full(channels, zero)
    first, second = np.full(channels, zero), np.full(channels, zero)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        counts = view(count, WIDE, run * channels, channels)
        means, squares = view(mean, WIDE, run * channels, channels), view(var, WIDE, run * channels, channels)
        counts[:] = 0.0
        means[:] = 0.0
        squares[:] = 0.0
        if low is not None:
            lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
        run_end = size * (part + 1) // parts
        for start in range(size * part // parts, run_end, height):
            stop = min(start + height, run_end)
            total[:] = zero
            first[:] = zero
            second[:] = zero
            inside[:] = zero + (stop - start) if low is None else zero
            for s in range(start, stop):
                row = view(x, zero, n * xn + s * xs, channels)
                if low is None:
                    for c in range(channels):
                        total[c] += row[c]
                else:
                    for c in range(channels):
                        keep = lower[c] < row[c] and row[c] < upper[c]
                        total[c] += row[c] if keep else zero
                        inside[c] += 1 if keep else 0
            for c in range(channels):
                total[c] /= max(inside[c], zero + 1)  # from here on: the block's mean, the pivot of the second pass
            for s in range(start, stop):
                row = view(x, zero, n * xn + s * xs, channels)
                if low is None:
                    for c in range(channels):
                        deviation = row[c] - total[c]
                        first[c] += deviation
                        second[c] += deviation * deviation
                else:
                    for c in range(channels):
                        deviation = row[c] - total[c] if lower[c] < row[c] and row[c] < upper[c] else zero
                        first[c] += deviation
                        second[c] += deviation * deviation
            for c in range(channels):
                held = np.float64(inside[c])
                rest = first[c] / max(held, 1.0)  # what rounding left out of the pivot
                merged = max(counts[c] + held, 1.0)
                moved = total[c] + rest - means[c] if held > 0 else 0.0
                squares[c] += second[c] - first[c] * rest + moved * moved * counts[c] * held / merged
                means[c] += moved * held / merged
                counts[c] += held
        for c in range(channels):
            squares[c] /= max(counts[c], 1.0)


@sequential
def affine(zero, x, xn, xs, y, yn, ys, channels, size, parts, center, scale, bias, step, begin, end):
    """y = (x - center) * scale + bias."""
    for run in range(begin, end):
        n, part = run // parts, run % parts
        m, k = view(center, zero, n * step, channels), view(scale, zero, n * step, channels)
        b = view(bias, zero, n * step, channels)
        for s in range(size * part // parts, size * (part + 1) // parts):
            source, target = view(x, zero, n * xn + s * xs, channels), view(y, zero, n * yn + s * ys, channels)
            for c in range(channels):
                target[c] = (source[c] - m[c]) * k[c] + b[c]


@sequential
def grad_sums(zero, g, gn, gs, x, xn, xs, channels, size, parts, center, low, high, step, total, product, begin, end):
    """The sums of dy and of dy * (x - center) over every channel of every run, between the cell's bounds."""
    height = max(1, BLOCK // channels)
    first, second = np.full(channels, zero), np.full(channels, zero)
    for run in range(begin, end):
        n, part = run // parts, run % parts
        totals, products = view(total, WIDE, run * channels, channels), view(product, WIDE, run * channels, channels)
        m = view(center, zero, n * step, channels)
        totals[:] = 0.0
        products[:] = 0.0
        if low is not None:
            lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
        run_end = size * (part + 1) // parts
        for start in range(size * part // parts, run_end, height):
            first[:] = zero
            second[:] = zero
            for s in range(start, min(start + height, run_end)):
                grad, row = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
                if low is None:
                    for c in range(channels):
                        first[c] += grad[c]
                        second[c] += grad[c] * (row[c] - m[c])
                else:
                    for c in range(channels):
                        value = grad[c] if lower[c] < row[c] and row[c] < upper[c] else zero
                        first[c] += value
                        second[c] += value * (row[c] - m[c])
            for c in range(channels):
                totals[c] += first[c]
                products[c] += second[c]


@sequential
def grad_input(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, scale, slope, pivot, offset, low, high, step, begin, end
):
    """dx = dy * scale + ((x - pivot) * slope + offset), the bracket only for elements strictly between the bounds."""
    for run in range(begin, end):
        n, part = run // parts, run % parts
        k, a = view(scale, zero, n * step, channels), view(slope, zero, n * step, channels)
        p, o = view(pivot, zero, n * step, channels), view(offset, zero, n * step, channels)
        if low is not None:
            lower, upper = view(low, zero, n * step, channels), view(high, zero, n * step, channels)
        for s in range(size * part // parts, size * (part + 1) // parts):
            grad, row = view(g, zero, n * gn + s * gs, channels), view(x, zero, n * xn + s * xs, channels)
            target = view(d, zero, n * dn + s * ds, channels)
            if low is None:
                for c in range(channels):
                    target[c] = grad[c] * k[c] + ((row[c] - p[c]) * a[c] + o[c])
            else:
                for c in range(channels):
                    moved = (row[c] - p[c]) * a[c] + o[c] if lower[c] < row[c] and row[c] < upper[c] else zero
                    target[c] = grad[c] * k[c] + moved

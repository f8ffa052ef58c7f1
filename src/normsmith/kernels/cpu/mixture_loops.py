"""The loops of mixtures: blocks of a channel are gathered into a scratch that stays in the first cache, where sweeps over them cost little.

A channel's N*S positions, in order, are cut into `runs`; a tile of adjacent channels (1 where positions are adjacent in memory, 16 where
channels are, so that whole cache lines are read) and a run are one task. Each loop treats the tasks `begin` to `end` on one core; sums
are float64, K*C a run, and do not depend on how many cores there are. What a loop does with a block is in `mixture_blocks.py`.
`given` is the address of a joint mixture's shares, K*N*S; at 0 shares are computed from the density in the table.
"""

import numpy as np

from normsmith.kernels.cpu.memory import cast, fill, sequential, view
from normsmith.kernels.cpu.mixture_blocks import (
    BLOCK,
    CENTER,
    CONSTANT,
    MEAN,
    OFFSET,
    PIVOT,
    PRECISION,
    SCALE,
    SLOPE,
    SPREAD,
    accumulate,
    add_logits,
    gather,
    hide,
    scatter,
    share,
    softmax,
)


@sequential
def joint_shares(
    zero, x, xn, xc, xs, channels, size, table, number, positions, runs, masked, given, measures, sums, begin, end
):
    """The shares of the points of a joint mixture, to the address `given`; and, while they are in the cache, their weighted moments."""
    block, peak, total, taken = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero)
    out, own = np.full(number * BLOCK, zero), np.full(number * BLOCK if masked else 0, zero)
    for run in range(begin, end):
        last = positions * (run + 1) // runs
        for start in range(positions * run // runs, last, BLOCK):
            held = min(BLOCK, last - start)
            for k in range(number):
                fill(out[k * BLOCK : k * BLOCK + held], table[CONSTANT, k * channels])
            for c in range(channels):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                add_logits(zero, block, held, table, number, channels, c, masked, out)
            softmax(zero, out, number, held, peak, total, taken)
            for k in range(number):
                row, target = out[k * BLOCK : k * BLOCK + held], view(given, zero, k * positions + start, held)
                for i in range(held):
                    target[i] = row[i]
            for c in range(channels if measures else 0):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                shares = out
                if masked:
                    shares = own
                    for i in range(number * BLOCK):
                        own[i] = out[i]
                    hide(zero, block, held, own, number, total)
                accumulate(zero, block, held, shares, number, channels, c, sums[0, run], sums[1, run], sums[2, run])
        for at in range(number * channels if measures else 0):
            count = sums[0, run, at]
            sums[2, run, at] = max(sums[2, run, at], 0.0) / count if count > 0 else 0.0


@sequential
def moments(zero, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, begin, end):
    """Sum of shares, weighted mean and variance of every channel and component of a run; `sums` are zero at first."""
    block, peak, total, taken = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero)
    out = np.full(number * BLOCK, zero)
    for task in range(begin, end):
        first, run = task // runs * tile, task % runs
        counts, means, variances = sums[0, run], sums[1, run], sums[2, run]
        last = positions * (run + 1) // runs
        for start in range(positions * run // runs, last, BLOCK):
            held = min(BLOCK, last - start)
            for c in range(first, min(first + tile, channels)):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                share(zero, block, held, table, number, channels, c, given, positions, start, masked, out, peak, total, taken)
                accumulate(zero, block, held, out, number, channels, c, counts, means, variances)
        for c in range(first, min(first + tile, channels)):
            for k in range(number):
                at = k * channels + c
                variances[at] = max(variances[at], 0.0) / counts[at] if counts[at] > 0 else 0.0


@sequential
def affine(zero, x, xn, xc, xs, y, yn, yc, ys, channels, size, table, bias, number, positions, tile, runs, given, begin, end):
    """y = sum_k share_k * (x - center_k) * scale_k + bias."""
    block, peak, total, taken = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero)
    out = np.full(number * BLOCK, zero)
    for task in range(begin, end):
        first, run = task // runs * tile, task % runs
        last = positions * (run + 1) // runs
        for start in range(positions * run // runs, last, BLOCK):
            held = min(BLOCK, last - start)
            for c in range(first, min(first + tile, channels)):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                share(zero, block, held, table, number, channels, c, given, positions, start, False, out, peak, total, taken)
                level = view(bias, zero, c, 1)[0]
                for k in range(number):
                    row, at = out[k * BLOCK : k * BLOCK + held], k * channels + c
                    center, scale = table[CENTER, at], table[SCALE, at]
                    if k == 0:
                        for i in range(held):
                            total[i] = level + row[i] * ((block[i] - center) * scale)
                    else:
                        for i in range(held):
                            total[i] += row[i] * ((block[i] - center) * scale)
                scatter(zero, total, held, y, c * yc, yn, ys, size, start)


@sequential
def grad_sums(
    zero, g, gn, gc, gs, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, begin, end
):
    """The sums of dy * share and of dy * share * (x - center) of a run; zero at first."""
    block, peak, total, taken = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero)
    grad, out = np.full(BLOCK, zero), np.full(number * BLOCK, zero)
    for task in range(begin, end):
        first, run = task // runs * tile, task % runs
        last = positions * (run + 1) // runs
        for start in range(positions * run // runs, last, BLOCK):
            held = min(BLOCK, last - start)
            for c in range(first, min(first + tile, channels)):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                gather(zero, g, c * gc, gn, gs, size, start, grad, held)
                share(zero, block, held, table, number, channels, c, given, positions, start, masked, out, peak, total, taken)
                for k in range(number):
                    row, at = out[k * BLOCK : k * BLOCK + held], k * channels + c
                    center = table[CENTER, at]
                    whole, product = zero, zero
                    for i in range(held):
                        part = row[i] * grad[i]
                        whole += part
                        product += part * (block[i] - center)
                    sums[0, run, at] += whole
                    sums[1, run, at] += product


@sequential
def grad_input(
    zero, g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, channels, size, table, number, positions, tile, runs, given, masked,
    through, sums, begin, end
):  # fmt: skip
    """dx, and with `through` the sums of the logits' gradients, times 1, the distance to the mean, and its square."""
    two = cast(2, zero)
    block, peak, total, taken = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(BLOCK, zero)
    grad, target, out = np.full(BLOCK, zero), np.full(BLOCK, zero), np.full(number * BLOCK, zero)
    worth = np.full(number * BLOCK if through else 0, zero)
    for task in range(begin, end):
        first, run = task // runs * tile, task % runs
        last = positions * (run + 1) // runs
        for start in range(positions * run // runs, last, BLOCK):
            held = min(BLOCK, last - start)
            for c in range(first, min(first + tile, channels)):
                gather(zero, x, c * xc, xn, xs, size, start, block, held)
                gather(zero, g, c * gc, gn, gs, size, start, grad, held)
                share(zero, block, held, table, number, channels, c, given, positions, start, masked, out, peak, total, taken)
                fill(target, zero)
                fill(total, zero)
                for k in range(number):
                    row, at = out[k * BLOCK : k * BLOCK + held], k * channels + c
                    scale, offset, slope = table[SCALE, at], table[OFFSET, at], table[SLOPE, at]
                    double, pivot = two * slope, table[PIVOT, at]
                    if not through:
                        for i in range(held):
                            target[i] += row[i] * (grad[i] * scale + (offset + double * (block[i] - pivot)))
                    else:
                        center, spread, value = table[CENTER, at], table[SPREAD, at], worth[k * BLOCK : k * BLOCK + held]
                        for i in range(held):
                            direct, away = grad[i] * scale, block[i] - pivot
                            target[i] += row[i] * (direct + (offset + double * away))
                            value[i] = direct * (block[i] - center) + (offset * away + slope * (away * away - spread))
                            total[i] += row[i] * value[i]
                if through:
                    for k in range(number):
                        row, at = out[k * BLOCK : k * BLOCK + held], k * channels + c
                        mean, precision, value = table[MEAN, at], table[PRECISION, at], worth[k * BLOCK : k * BLOCK + held]
                        whole, once, twice = zero, zero, zero
                        for i in range(held):
                            logit, far = row[i] * (value[i] - total[i]), block[i] - mean
                            product = logit * far
                            whole += logit
                            once += product
                            twice += product * far
                            target[i] -= product * precision
                        sums[0, run, at] += whole
                        sums[1, run, at] += once
                        sums[2, run, at] += twice
                scatter(zero, target, held, d, c * dc, dn, ds, size, start)

"""What the loops of mixtures do with a block of a channel, which stays in the first cache, where sweeps over it cost little.

`table` holds, per component and channel, the rows named below; shares and logits are a row of BLOCK for each component. Logits are to the
base 2, CONSTANT + CURVE * (x - MEAN)².
"""

import numpy as np

from normsmith.kernels.cpu.exponential import power_of_two
from normsmith.kernels.cpu.memory import cast, sequential, view

BLOCK = 512  # positions of a channel swept at once
ROWS = 10  # of the table
CONSTANT, MEAN, CURVE, PRECISION, CENTER, SCALE, OFFSET, SLOPE, PIVOT, SPREAD = range(ROWS)


@sequential
def gather(zero, x, at, xn, xs, size, start, out, held):
    """`held` elements of a channel that begins at `at`, from position `start` of N*S on."""
    done = 0
    while done < held:
        n, s = (start + done) // size, (start + done) % size
        run = min(size - s, held - done)
        row, part = view(x, zero, at + n * xn + s * xs, (run - 1) * xs + 1), out[done : done + run]
        if xs == 1:  # and no index is a sum, which might be negative for all that the vectoriser knows
            for i in range(run):
                part[i] = row[i]
        else:
            for i in range(run):
                part[i] = row[i * xs]
        done += run


@sequential
def scatter(zero, block, held, y, at, yn, ys, size, start):
    """The way back."""
    done = 0
    while done < held:
        n, s = (start + done) // size, (start + done) % size
        run = min(size - s, held - done)
        row, part = view(y, zero, at + n * yn + s * ys, (run - 1) * ys + 1), block[done : done + run]
        if ys == 1:
            for i in range(run):
                row[i] = part[i]
        else:
            for i in range(run):
                row[i * ys] = part[i]
        done += run


@sequential
def softmax(zero, logits, number, held, peak, total, taken):
    """Shares from logits, in place: the largest subtracted, so that nothing overflows however far away a point is.

    The power of the largest is 1. So that it need not be computed, the last component takes the place of the largest.
    """
    one = cast(1, zero)
    last = logits[(number - 1) * BLOCK : (number - 1) * BLOCK + held]
    for i in range(held):
        peak[i], taken[i] = last[i], one
    for k in range(number - 1):
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            peak[i] = max(peak[i], row[i])
    for k in range(number - 1):  # a fifth array in this loop would be one too many for the vectoriser
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            own, other, most, before = row[i], last[i], peak[i], taken[i]
            largest = own == most
            power = power_of_two((other if largest else own) - most, zero)
            taken[i] = power if largest else before
            row[i] = one if largest else power
    for i in range(held):
        total[i] = taken[i]
    for k in range(number - 1):
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            total[i] += row[i]
    for i in range(held):
        total[i] = one / total[i]
        last[i] = taken[i] * total[i]
    for k in range(number - 1):
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            row[i] *= total[i]


@sequential
def hide(zero, block, held, shares, number, total):
    """No share of what is NaN, which becomes zero."""
    one = cast(1, zero)
    for i in range(held):
        total[i] = zero if np.isnan(block[i]) else one
        block[i] = zero if np.isnan(block[i]) else block[i]
    for k in range(number):
        row = shares[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            row[i] = row[i] if total[i] > 0 else zero


@sequential
def add_logits(zero, block, held, table, number, channels, c, masked, logits):
    """A channel's part of the logits of a joint mixture; none from what is NaN, where that is masked."""
    for k in range(number):
        row, at = logits[k * BLOCK : k * BLOCK + held], k * channels + c
        mean, curve = table[MEAN, at], table[CURVE, at]
        if masked:
            for i in range(held):
                away = block[i] - mean
                row[i] += zero if np.isnan(away) else curve * away * away
        else:
            for i in range(held):
                away = block[i] - mean
                row[i] += curve * away * away


@sequential
def share(zero, block, held, table, number, channels, c, given, positions, start, masked, out, peak, total, taken):
    """The shares of a block, a row of BLOCK for each component; none for what does not count, which becomes zero itself."""
    for k in range(number):
        row = out[k * BLOCK : k * BLOCK + held]
        if given:
            source = view(given, zero, k * positions + start, held)
            for i in range(held):
                row[i] = source[i]
        else:
            at = k * channels + c
            constant, mean, curve = table[CONSTANT, at], table[MEAN, at], table[CURVE, at]
            for i in range(held):
                away = block[i] - mean
                row[i] = constant + curve * away * away
    if not given:
        softmax(zero, out, number, held, peak, total, taken)
    if masked:
        hide(zero, block, held, out, number, total)


@sequential
def accumulate(zero, block, held, shares, number, channels, c, counts, means, squares):
    """Add a block of a channel to its weighted moments.

    Within the block deviations are from its own weighted mean, between blocks from the mean so far: nothing cancels.
    """
    pivot = block[held // 2]
    for k in range(number):
        row = shares[k * BLOCK : k * BLOCK + held]
        weight, moved = zero, zero
        for i in range(held):
            weight += row[i]
            moved += row[i] * (block[i] - pivot)
        if weight == 0:
            continue
        mean = pivot + moved / weight
        rest, spread = zero, zero
        for i in range(held):
            away = block[i] - mean
            rest += row[i] * away
            spread += row[i] * away * away
        own, before, at = np.float64(weight), counts[k * channels + c], k * channels + c
        step = mean + np.float64(rest) / own - means[at]
        counts[at] = before + own
        means[at] += step * own / counts[at]
        squares[at] += spread - np.float64(rest) * rest / own + step * step * before * own / counts[at]

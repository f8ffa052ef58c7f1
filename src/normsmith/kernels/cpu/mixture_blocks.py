"""What the loops of mixtures do with a block of a channel, which stays in the first cache, where sweeps over it cost little.

`table` holds, per component and channel, the rows named below; shares and logits are a row of BLOCK for each component. Logits are to the
base 2, CONSTANT + CURVE * (x - MEAN)².
"""

import numpy as np

from normsmith.kernels.cpu.exponential import power_of_two
from normsmith.kernels.cpu.memory import cast, fill, sequential, view

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
def adjacent(xs, size, start, held):
    """Whether these elements of a channel lie one beside the other."""
    return xs == 1 and start % size + held <= size


@sequential
def reach(zero, x, at, xn, xs, size, start, out, held, copied):
    """The elements that `gather` copies: themselves where they are adjacent and no copy is wanted, else copied to `out`."""
    if adjacent(xs, size, start, held) and not copied:
        return view(x, zero, at + start // size * xn + start % size, held)
    gather(zero, x, at, xn, xs, size, start, out, held)
    return out


@sequential
def place(zero, y, at, yn, ys, size, start, out, held):
    """Where to write elements that `scatter` will bring to y: they are there already where they are adjacent."""
    if adjacent(ys, size, start, held):
        return view(y, zero, at + start // size * yn + start % size, held)
    return out


@sequential
def scatter(zero, block, held, y, at, yn, ys, size, start):
    """The way back, for a block that `place` has told."""
    done = held if adjacent(ys, size, start, held) else 0
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
def softmax(zero, logits, number, held, peak, total):
    """Shares from logits, in place: the largest subtracted, so that nothing overflows however far away a point is."""
    one = cast(1, zero)
    if number == 1:
        fill(logits[:held], one)
        return
    first, second = logits[:held], logits[BLOCK : BLOCK + held]
    for i in range(held):
        peak[i], total[i] = max(first[i], second[i]), zero
    for k in range(2, number):
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            peak[i] = max(peak[i], row[i])
    for k in range(number):
        row = logits[k * BLOCK : k * BLOCK + held]
        for i in range(held):
            row[i] = power_of_two(row[i] - peak[i], zero)
            total[i] += row[i]
    for i in range(held):
        total[i] = one / total[i]
    for k in range(number):
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
def share_of_three(zero, block, held, table, channels, c, out):
    """`share` where there are three components, as there are by default: with all of them in registers it takes half as long."""
    one, second, third = cast(1, zero), channels + c, 2 * channels + c
    constant_1, mean_1, curve_1 = table[CONSTANT, c], table[MEAN, c], table[CURVE, c]
    constant_2, mean_2, curve_2 = table[CONSTANT, second], table[MEAN, second], table[CURVE, second]
    constant_3, mean_3, curve_3 = table[CONSTANT, third], table[MEAN, third], table[CURVE, third]
    row_1, row_2, row_3 = out[:held], out[BLOCK : BLOCK + held], out[2 * BLOCK : 2 * BLOCK + held]
    for i in range(held):
        away_1, away_2, away_3 = block[i] - mean_1, block[i] - mean_2, block[i] - mean_3
        logit_1 = constant_1 + curve_1 * away_1 * away_1
        logit_2 = constant_2 + curve_2 * away_2 * away_2
        logit_3 = constant_3 + curve_3 * away_3 * away_3
        peak = max(logit_1, logit_2, logit_3)
        power_1, power_2 = power_of_two(logit_1 - peak, zero), power_of_two(logit_2 - peak, zero)
        power_3 = power_of_two(logit_3 - peak, zero)
        factor = one / (power_1 + power_2 + power_3)
        row_1[i], row_2[i], row_3[i] = power_1 * factor, power_2 * factor, power_3 * factor


@sequential
def share(zero, block, held, table, number, channels, c, given, positions, start, masked, out, peak, total):
    """The shares of a block, a row of BLOCK for each component; none for what does not count, which becomes zero itself."""
    if not given and number == 3:
        share_of_three(zero, block, held, table, channels, c, out)
    for k in range(0 if not given and number == 3 else number):
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
    if not given and number != 3:
        softmax(zero, out, number, held, peak, total)
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

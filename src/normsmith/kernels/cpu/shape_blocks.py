"""What the loops behind `doctor` do with one block of a channel, which lies in the first cache: extremes, power sums, bins.

Extremes are compared as integers of the same order as the floats: that vectorises without a promise that there is no NaN. numba widens
what integers of 32 bits give, so results are cast back, or only half as many would fit into a register.
"""

import numpy as np

from normsmith.kernels.cpu.memory import bits, cast, ordered, sequential

TINY = 1e-307  # a distance whose inverse is still finite; the square of a smaller one is zero anyway
WIDE = np.float64(0)
NARROW = np.float32(0)
WORD = np.int32(0)
SHIFT = 18  # bits of a float32 below its bin, of which there are 32 an octave
PAIRED = 32  # elements of a cell, from which on a loop of its own pays


@sequential
def extremes(words):
    """The least and the greatest of the floats of these bits, as ordered integers; a NaN is beyond the infinities."""
    low = ordered(words[0])
    high = low
    for i in range(words.size):
        word = ordered(words[i])
        low = min(low, word)
        high = max(high, word)
    return low, high


@sequential
def halve(lows, highs, least, most, pairs):
    """The lesser of every pair of `lows` into `least`, the greater of every pair of `highs` into `most`."""
    for i in range(pairs):
        least[i] = min(lows[2 * i], lows[2 * i + 1])
        most[i] = max(highs[2 * i], highs[2 * i + 1])


@sequential
def cell_extremes(words, cells, size, lows, highs, least, most):
    """The extremes of so many adjacent cells, as ordered integers, at the front of one or the other pair of rooms: that one.

    Small cells are halved all together as long as that goes, which vectorises where a loop over each would not.
    """
    if size % 2 or size >= PAIRED:
        for j in range(cells):
            lows[j], highs[j] = extremes(words[j * size : (j + 1) * size])
        return lows, highs
    pairs = cells * size // 2
    for i in range(pairs):
        one, two = ordered(words[2 * i]), ordered(words[2 * i + 1])
        lows[i] = min(one, two)
        highs[i] = max(one, two)
    size //= 2
    while size % 2 == 0:
        pairs //= 2
        halve(lows, highs, least, most, pairs)
        lows, highs, least, most = least, most, lows, highs
        size //= 2
    if size > 1:
        for j in range(cells):
            low, high = lows[j * size], highs[j * size]
            for i in range(j * size + 1, (j + 1) * size):
                low, high = min(low, lows[i]), max(high, highs[i])
            least[j], most[j] = low, high
        return least, most
    return lows, highs


@sequential
def keep_finite(block):
    """Move the finite elements to the front; how many they are, and their extremes."""
    held = 0
    low, high = np.inf, -np.inf
    for i in range(block.size):
        value = block[i]
        if np.isfinite(value):
            block[held] = value
            held += 1
            low, high = min(low, np.float64(value)), max(high, np.float64(value))
    return held, low, high


@sequential
def pivot_of(block, zero):
    """The mean in the type of the elements, to take deviations from."""
    total = zero
    for i in range(block.size):
        total += block[i]
    if not np.isfinite(total):  # finite numbers, but large ones
        wide = 0.0
        for i in range(block.size):
            wide += block[i] / block.size
        return cast(wide, zero)
    return total / cast(block.size, zero)


@sequential
def powers(block, pivot, inverse, zero):
    """The sums of the first four powers of the deviation from the pivot, in units that keep all of them in range."""
    first = zero
    second = zero
    third = zero
    fourth = zero
    for i in range(block.size):
        one = (block[i] - pivot) * inverse
        two = one * one
        first += one
        second += two
        third += two * one
        fourth += two * two
    return first, second, third, fourth


@sequential
def merge_facts(facts, count, mean, second, third, fourth):
    """The union of a channel's numbers with those of a block (Pébay 2008)."""
    held, before = facts[0], facts[1]
    if held == 0:  # as they are: a number over itself may be one less a rounding here, and a constant channel no longer be one
        facts[0], facts[1], facts[2], facts[3], facts[4] = count, mean, second, third, fourth
        return
    total = held + count
    step = mean - before
    share, rest = count / total, held / total
    square = step * step
    crossed = held * share
    facts[4] += (
        fourth
        + square * square * crossed * (rest * rest - rest * share + share * share)
        + 6.0 * square * (rest * rest * second + share * share * facts[2])
        + 4.0 * step * (rest * third - share * facts[3])
    )
    facts[3] += third + square * step * crossed * (rest - share) + 3.0 * step * (rest * second - share * facts[2])
    facts[2] += second + square * crossed
    facts[1] = before + step * share
    facts[0] = total


@sequential
def add_block(block, low, high, zero, facts):
    """Add a block of finite elements between these extremes to a channel's numbers."""
    facts[5], facts[6] = min(facts[5], low), max(facts[6], high)
    size = np.float64(block.size)
    pivot = min(max(pivot_of(block, zero), cast(low, zero)), cast(high, zero))
    reach = max(high - np.float64(pivot), np.float64(pivot) - low)
    if reach < TINY:
        merge_facts(facts, size, np.float64(pivot), 0.0, 0.0, 0.0)
        return
    inverse = cast(1.0 / reach, zero)
    if inverse == 0.0 or not np.isfinite(inverse) or not np.isfinite(cast(reach, zero)):  # beyond what the type can invert
        one, two, three, four = powers(block, np.float64(pivot), 1.0 / reach, WIDE)
        unit = reach
    else:
        narrow = powers(block, pivot, inverse, zero)
        one, two, three, four = np.float64(narrow[0]), np.float64(narrow[1]), np.float64(narrow[2]), np.float64(narrow[3])
        unit = 1.0 / np.float64(inverse)
    rest = one / size
    square = rest * rest
    second = max(two - one * rest, 0.0)
    third = three - 3.0 * rest * two + 2.0 * size * square * rest
    fourth = max(four - 4.0 * rest * three + 6.0 * square * two - 3.0 * size * square * square, 0.0)
    mean, area = np.float64(pivot) + rest * unit, unit * unit
    merge_facts(facts, size, mean, second * area, third * area * unit, fourth * area * area)


@sequential
def bin_block(block, center, inverse, zero, side, places, tally):
    """Count every element in its bin: bins of equal width in every octave of 1 + |z|, in order of z."""
    one = cast(1, zero)
    base = np.int32(0x3F800000)
    last = np.int32(side - np.int32(1))
    for i in range(block.size):
        word = bits(cast(one + abs((block[i] - center) * inverse), NARROW), WORD)
        away = min(np.int32(np.int32(word - base) >> SHIFT), last)
        places[i] = side + away if block[i] >= center else last - away
    for i in range(block.size):  # the places are unsigned: numba would first look whether an index is negative
        tally[places[i]] += 1

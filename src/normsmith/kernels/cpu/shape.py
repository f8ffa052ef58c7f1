"""The loop behind `doctor`: power sums to the fourth, extremes and a histogram of every channel, in one pass over memory.

Blocks of a channel are gathered into a scratch that stays in the first cache, where the sweeps over them cost little. The loop treats
the tiles `begin` to `end` of `tile` adjacent channels: 1 where positions are adjacent in memory, 16 where channels are, so that whole
cache lines are read. A tile belongs to one core, so that results do not depend on how many there are.

`facts` holds 8 numbers a channel: count, mean, the central power sums 2 to 4, minimum, maximum, and how many elements are not finite and
therefore in none of the others. `lows` and `highs` hold the extremes of every cell, NaN or infinite where an element is.
Extremes are compared as integers of the same order as the floats: that vectorises without a promise that there is no NaN.
"""

import numpy as np

from normsmith.kernels.cpu.memory import cast, sequential, view

BLOCK = 2048
WIDE = np.float64(0)
NARROW = np.float32(0)
WORD = np.int32(0)


@sequential
def ordered(word, sign, top):
    """An integer that is ordered as the float of the same bits; applied twice, the same word again."""
    return word ^ ((word >> sign) & top)


@sequential
def extremes(words, sign, top):
    """The least and the greatest of the floats of these bits, as ordered integers; a NaN is beyond the infinities."""
    low = ordered(words[0], sign, top)
    high = low
    for i in range(words.size):
        word = ordered(words[i], sign, top)
        low = min(low, word)
        high = max(high, word)
    return low, high


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
    if reach == 0.0:
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
def bin_block(block, center, inverse, zero, side, shift, places, words, tally):
    """Count every element in its bin: bins of equal width in every octave of 1 + |z|, in order of z."""
    one = cast(1, zero)
    base = np.int32(0x3F800000)
    for i in range(block.size):
        places[i] = cast(one + abs((block[i] - center) * inverse), NARROW)
    for i in range(block.size):
        bin = min((words[i] - base) >> shift, side - np.int32(1))
        words[i] = side + bin if block[i] >= center else side - np.int32(1) - bin
    for i in range(block.size):
        tally[words[i]] += 1


@sequential
def describe(
    zero, word, sign, top, x, xn, xc, xs, samples, channels, size, tile, center, inverse, side, shift, number, tallies, facts, lows, highs,
    begin, end
):  # fmt: skip
    """Everything about the channels of these tiles; without a histogram `tallies` is None, without extremes of cells `lows` is.

    Tallies have the type of `number`.
    """
    scratch = np.empty((tile, BLOCK), dtype=np.float64)  # room for either type
    places = np.empty(BLOCK, dtype=np.float32)
    words = view(places.ctypes.data, WORD, 0, BLOCK)
    total = samples * size
    for at in range(begin, end):
        origin = at * tile
        width = min(tile, channels - origin)
        filled = 0
        done = 0
        for n in range(samples):
            start = 0
            while start < size:
                take = min(size - start, BLOCK - filled)
                if tile == 1:
                    block = view(scratch.ctypes.data, zero, filled, take)
                    row = view(x, zero, n * xn + origin * xc + start * xs, take)
                    for i in range(take):
                        block[i] = row[i]
                else:
                    block = view(scratch.ctypes.data, zero, 0, tile * BLOCK)
                    for i in range(take):
                        row = view(x, zero, n * xn + origin * xc + (start + i) * xs, width)
                        for k in range(width):
                            block[k * BLOCK + filled + i] = row[k]
                if lows is not None:
                    for k in range(width):
                        cell = n * channels + origin + k
                        low, high = extremes(view(scratch.ctypes.data, word, k * BLOCK + filled, take), sign, top)
                        least, most = view(lows, word, cell, 1), view(highs, word, cell, 1)
                        least[0] = ordered(low if start == 0 else min(low, ordered(least[0], sign, top)), sign, top)
                        most[0] = ordered(high if start == 0 else max(high, ordered(most[0], sign, top)), sign, top)
                start += take
                filled += take
                done += take
                if filled < BLOCK and done < total:
                    continue
                for k in range(width):
                    channel = origin + k
                    fact = view(facts, WIDE, channel * 8, 8)
                    held = filled
                    bits = view(scratch.ctypes.data, word, k * BLOCK, held)
                    edge = view(scratch.ctypes.data, zero, k * BLOCK, held)
                    least_word, most_word = extremes(bits, sign, top)
                    pair = np.empty(2, dtype=np.float64)
                    as_words, as_floats = view(pair.ctypes.data, word, 0, 2), view(pair.ctypes.data, zero, 0, 2)
                    as_words[0], as_words[1] = ordered(least_word, sign, top), ordered(most_word, sign, top)
                    low, high = np.float64(as_floats[0]), np.float64(as_floats[1])
                    if not (np.isfinite(low) and np.isfinite(high)):
                        held, low, high = keep_finite(edge)
                        fact[7] += filled - held
                    if held == 0:
                        continue
                    edge = edge[:held]
                    add_block(edge, low, high, zero, fact)
                    if tallies is not None:
                        middle, unit = view(center, zero, channel, 1)[0], view(inverse, zero, channel, 1)[0]
                        tally = view(tallies, number, channel * 2 * side, 2 * side)
                        bin_block(edge, middle, unit, zero, side, shift, places, words, tally)
                filled = 0

"""The loops behind `doctor`: power sums to the fourth, extremes and a histogram of every channel, in one pass over memory;
and the largest scores.

Blocks of a channel are gathered into a scratch that stays in the first cache, where the sweeps over them cost little. The loop treats
the tiles `begin` to `end` of `tile` adjacent channels: 1 where positions are adjacent in memory, 16 where channels are, so that whole
cache lines are read. A tile belongs to one core, so that results do not depend on how many there are.

`facts` holds 8 numbers a channel: count, mean, the central power sums 2 to 4, minimum, maximum, and how many elements are not finite and
therefore in none of the others. `lows` and `highs`, (C, N), hold the extremes of every cell, NaN or infinite where an element is.
Extremes are compared as integers of the same order as the floats: that vectorises without a promise that there is no NaN.
"""

import numpy as np

from normsmith.kernels.cpu.memory import cast, item_size, sequential, view

BLOCK = 2048  # positions of a channel swept at once
SHORT = 256  # the same where a tile has several channels
PAD = 16  # between the rows of the scratch, which would else compete for the same lines of the cache
WIDE = np.float64(0)
TINY = 1e-307  # a distance whose inverse is still finite; the square of a smaller one is zero anyway
NARROW = np.float32(0)
WORD = np.int32(0)
LONG = np.int64(0)


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
def bin_block(block, center, inverse, zero, side, shift, places, words, tally):
    """Count every element in its bin: bins of equal width in every octave of 1 + |z|, in order of z."""
    one = cast(1, zero)
    base = np.int32(0x3F800000)
    for i in range(block.size):
        places[i] = cast(one + abs((block[i] - center) * inverse), NARROW)
    for i in range(block.size):
        away = min((words[i] - base) >> shift, side - np.int32(1))
        words[i] = side + away if block[i] >= center else side - np.int32(1) - away
    for i in range(block.size):
        tally[words[i]] += 1


@sequential
def load(zero, x, step, scratch, pitch, filled, take, tile, width):
    """Copy `take` positions of a tile into the scratch, where each channel is a row."""
    if tile == 1:
        block, row = view(scratch, zero, filled, take), view(x, zero, 0, take)
        for i in range(take):
            block[i] = row[i]
    else:
        block = view(scratch, zero, 0, tile * pitch)
        for i in range(take):
            row = view(x, zero, i * step, width)
            for k in range(width):
                block[k * pitch + filled + i] = row[k]


@sequential
def note_extremes(words, word, sign, top, low, high, first):
    """Those of one more part of a cell, into the cell's, which the first part begins."""
    least, most = view(low, word, 0, 1), view(high, word, 0, 1)
    lowest, highest = extremes(words, sign, top)
    if not first:
        lowest, highest = min(lowest, ordered(least[0], sign, top)), max(highest, ordered(most[0], sign, top))
    least[0], most[0] = ordered(lowest, sign, top), ordered(highest, sign, top)


@sequential
def clean(block, words, zero, word, sign, top, pair):
    """How many finite elements the block begins with, the others being moved out, and their extremes."""
    note_extremes(words, word, sign, top, pair.ctypes.data, pair[1:].ctypes.data, True)
    low, high = view(pair.ctypes.data, zero, 0, 1)[0], view(pair[1:].ctypes.data, zero, 0, 1)[0]
    if np.isfinite(low) and np.isfinite(high):
        return block.size, np.float64(low), np.float64(high)
    return keep_finite(block)


@sequential
def describe(
    zero, word, sign, top, x, xn, xc, xs, samples, channels, size, tile, center, inverse, side, shift, number, tallies, facts, lows, highs,
    begin, end
):  # fmt: skip
    """Everything about the channels of these tiles; without a histogram `tallies` is 0, without extremes of cells `lows` is.

    That is decided while it runs, as each form compiled would take its seconds. Tallies have the type of `number`.
    """
    height = BLOCK if tile == 1 else SHORT
    pitch = height + PAD
    room = np.empty((tile, pitch), dtype=np.float64)  # enough for either type
    item = item_size(zero)
    places, pair = np.empty(BLOCK, dtype=np.float32), np.empty(2, dtype=np.float64)
    words = view(places.ctypes.data, WORD, 0, BLOCK)
    for at in range(begin, end):
        scratch = room.ctypes.data  # asked for in the loop: an array is freed after its last mention, whoever has its address
        origin = at * tile
        width = min(tile, channels - origin)
        filled = 0
        n = 0
        start = 0
        while n < samples:
            take = min(size - start, height - filled)
            load(zero, x + (n * xn + origin * xc + start * xs) * item, xs, scratch, pitch, filled, take, tile, width)
            if lows:
                for k in range(width):
                    cell = ((origin + k) * samples + n) * item
                    part = view(scratch, word, k * pitch + filled, take)
                    note_extremes(part, word, sign, top, lows + cell, highs + cell, start == 0)
            filled += take
            start += take
            if start == size:
                n += 1
                start = 0
            if filled < height and n < samples:
                continue
            for k in range(width):
                c = origin + k
                fact, block = view(facts, WIDE, c * 8, 8), view(scratch, zero, k * pitch, filled)
                held, low, high = clean(block, view(scratch, word, k * pitch, filled), zero, word, sign, top, pair)
                fact[7] += filled - held
                if held > 0:
                    add_block(block[:held], low, high, zero, fact)
                if held > 0 and tallies:
                    middle, unit = view(center, zero, c, 1)[0], view(inverse, zero, c, 1)[0]
                    tally = view(tallies, number, c * 2 * side, 2 * side)
                    bin_block(block[:held], middle, unit, zero, side, shift, places, words, tally)
            filled = 0


@sequential
def keep_largest(scores, step, jump, flip, numbers, samples, channels, keys, kept, sign, top):
    """Insert scores of samples with these numbers into the descending keys (C, kept), as `doctor/topk.py` packs them.

    The score of sample n and channel c lies at n * step + c * jump; `flip` are the bits to change in it, none or that of the sign.
    """
    last, nothing = np.int64(0xFFFFFFFF), np.int64(-0x8000000000000000)
    sample = view(numbers, LONG, 0, samples)
    for c in range(channels):
        row = view(keys, LONG, c * kept, kept)
        words, values = view(scores, WORD, c * jump, samples * step), view(scores, NARROW, c * jump, samples * step)
        if step == 1:  # adjacent: a glance at all of them, which seldom hold anything to keep
            low, high = extremes(words, sign, top)
            if (np.int64(high if flip == 0 else ~low) + 1) << 32 <= row[kept - 1]:
                continue
        for n in range(samples):
            value = values[n * step]
            word = ordered(words[n * step] ^ flip, sign, top) if value != 0 else WORD  # there is one zero, not two
            number = last - sample[n]
            key = (np.int64(word) << 32) | number
            if key <= row[kept - 1] or np.isnan(value):
                continue
            at = kept - 1
            for k in range(kept):
                if row[k] & last == number and row[k] != nothing:  # the same sample
                    at = k
                    break
            if row[at] >= key:
                continue
            while at > 0 and row[at - 1] < key:
                row[at] = row[at - 1]
                at -= 1
            row[at] = key

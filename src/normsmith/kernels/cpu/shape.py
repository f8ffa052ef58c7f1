"""The loops behind `doctor`: power sums to the fourth, extremes and a histogram of every channel, in one pass over memory;
and the largest scores.

Blocks of a channel are gathered into a scratch that stays in the first cache, where the sweeps over them (`shape_blocks.py`) cost
little. The loop treats the tiles `begin` to `end` of `tile` adjacent channels: as many as fill whole cache lines at a time. A tile
belongs to one core, so that results do not depend on how many there are.

`facts` holds 8 numbers a channel: count, mean, the central power sums 2 to 4, minimum, maximum, and how many elements are not finite and
therefore in none of the others. `lows` and `highs`, (C, N), hold the extremes of every cell, NaN or infinite where an element is.
"""

import numpy as np

from normsmith.kernels.cpu.memory import bits, cast, fetch, item_size, ordered, sequential, view
from normsmith.kernels.cpu.shape_blocks import NARROW, WIDE, WORD, add_block, bin_block, cell_extremes, extremes, keep_finite

BLOCK = 2048  # positions of a channel swept at once
ROOM = 8192  # positions of all channels of a tile
PAD = 16  # between the rows of the scratch, which would else compete for the same lines of the cache
LONG = np.int64(0)


@sequential
def load(zero, x, xc, xs, scratch, pitch, filled, take, width):
    """Copy `take` positions of a tile into the scratch, where each channel is a row."""
    if xs == 1:
        for k in range(width):
            block, row = view(scratch, zero, k * pitch + filled, take), view(x, zero, k * xc, take)
            for i in range(take):
                block[i] = row[i]
    else:
        block = view(scratch, zero, 0, width * pitch)
        for i in range(take):
            row = view(x, zero, i * xs, width)
            for k in range(width):
                block[k * pitch + filled + i] = row[k]


@sequential
def note_cells(words, cells, size, word, rooms, lows, highs, at, first):
    """The extremes of cells, or of one more part of one, into `lows` and `highs` if there are any; and those of all of them."""
    spare = view(rooms, word, 0, BLOCK), view(rooms, word, BLOCK, BLOCK)
    other = view(rooms, word, 2 * BLOCK, BLOCK), view(rooms, word, 3 * BLOCK, BLOCK)
    least, most = cell_extremes(words, cells, size, spare[0], spare[1], other[0], other[1])
    low, high = least[0], most[0]
    for j in range(cells):
        low, high = min(low, least[j]), max(high, most[j])
    if lows:
        held_low, held_high = view(lows, word, at, cells), view(highs, word, at, cells)
        for j in range(cells):
            one, two = least[j], most[j]
            if not first:
                one, two = min(one, ordered(held_low[j])), max(two, ordered(held_high[j]))
            held_low[j], held_high[j] = ordered(one), ordered(two)
    return ordered(low), ordered(high)


@sequential
def fetch_middles(address, step, width):
    """Have the bins that most elements fall into on their way, of so many channels: there are more histograms than a cache holds."""
    for k in range(width):
        for line in range(-6, 7):
            fetch(address + k * step + 64 * line)


@sequential
def describe(
    zero, word, x, xn, xc, xs, samples, channels, size, tile, center, inverse, side, number, tallies, facts, lows, highs,
    begin, end
):  # fmt: skip
    """Everything about the channels of these tiles; without a histogram `tallies` is 0, without extremes of cells `lows` is.

    That is decided while it runs, as each form compiled would take its seconds. Tallies have the type of `number`. A block is a number
    of whole cells, or one of equal parts of a cell.
    """
    height = min(BLOCK, ROOM // tile)
    pitch = height + PAD
    part, whole = -(-size // -(-size // height)), max(1, height // size)
    parts = -(-size // part)
    room, spare = np.empty((tile, pitch), dtype=np.float64), np.empty((4, BLOCK), dtype=np.float64)  # enough for either type
    places = np.empty(BLOCK, dtype=np.uint32)
    item, middle = item_size(zero), side * item_size(number)
    for at in range(begin, end):
        scratch, rooms = room.ctypes.data, spare.ctypes.data  # asked for here: an array is freed after its last mention
        origin = at * tile
        width = min(tile, channels - origin)
        if tallies:
            fetch_middles(tallies + (2 * origin + 1) * middle, 2 * middle, width)
        for b in range(-(-samples // whole) * parts):
            n, start = b // parts * whole, b % parts * part
            cells, take = min(whole, samples - n), min(part, size - start)
            for j in range(cells):
                load(zero, x + ((n + j) * xn + origin * xc + start * xs) * item, xc, xs, scratch, pitch, j * take, take, width)
            for k in range(width):
                c = origin + k
                words, block = view(scratch, word, k * pitch, cells * take), view(scratch, zero, k * pitch, cells * take)
                low, high = note_cells(words, cells, take, word, rooms, lows, highs, c * samples + n, start == 0)
                held, least, most = cells * take, np.float64(bits(low, zero)), np.float64(bits(high, zero))
                if not (np.isfinite(least) and np.isfinite(most)):
                    held, least, most = keep_finite(block)
                fact = view(facts, WIDE, c * 8, 8)
                fact[7] += block.size - held
                if held > 0:
                    add_block(block[:held], least, most, zero, fact)
                if held > 0 and tallies:
                    middles, units = view(center, zero, c, 1), view(inverse, zero, c, 1)
                    tally = view(tallies, number, c * 2 * side, 2 * side)
                    bin_block(block[:held], middles[0], units[0], zero, side, places, tally)


@sequential
def keep_largest(scores, step, jump, flip, numbers, samples, channels, keys, kept):
    """Insert scores of samples with these numbers into the descending keys (C, kept), as `doctor/topk.py` packs them.

    The score of sample n and channel c lies at n * step + c * jump; `flip` are the bits to change in it, none or that of the sign.
    """
    last, nothing = np.int64(0xFFFFFFFF), np.int64(-0x8000000000000000)
    sample = view(numbers, LONG, 0, samples)
    for c in range(channels):
        row = view(keys, LONG, c * kept, kept)
        words, values = view(scores, WORD, c * jump, samples * step), view(scores, NARROW, c * jump, samples * step)
        if step == 1:  # adjacent: a glance at all of them, which seldom hold anything to keep
            low, high = extremes(words)
            most = np.int64(high if flip == 0 else ~low)
            if (most + (2 if most == -1 else 1)) << 32 <= row[kept - 1]:  # the zero below zero counts as zero
                continue
        for n in range(samples):
            value = values[n * step]
            word = ordered(np.int32(words[n * step] ^ flip)) if value != 0 else WORD  # there is one zero, not two
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


@sequential
def keep_tails(lows, highs, step, jump, sign, numbers, samples, channels, keys, kept):
    """Insert the greatest of the highs into the first half of (2 C, kept) keys, of the negated lows into the second; `sign` is its bit."""
    keep_largest(highs, step, jump, cast(0, sign), numbers, samples, channels, keys, kept)
    keep_largest(lows, step, jump, sign, numbers, samples, channels, keys + channels * kept * item_size(LONG), kept)

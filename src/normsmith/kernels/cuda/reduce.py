"""The kernels that read x: moments and sums.

The tiles of an outer index (a sample, or all samples where they share their statistics) are numbered in order, `run` of them, and
`splits` programs take `span` of them each. Every thread adds up its own elements of all of a program's tiles; only at the end are threads
brought together. What a program found is written to row outer*splits + split of a (found, rows, C) tensor, in float64 if it is to be
merged with that of others.
"""

import triton
import triton.language as tl

from normsmith.kernels.cuda.tiles import between, following, load, positions, statistic, through


@triton.jit
def share(run, span, splits, blocks):
    """Of this program: its row in the results, its block of channels, its first tile and the one after its last."""
    program = tl.program_id(0).to(tl.int64)
    split, rest = program % splits, program // splits
    block, outer = rest % blocks, rest // blocks
    begin = outer * run + split * span
    return outer * splits + split, block, begin, tl.minimum(begin + span, (outer + 1) * run)


@triton.jit
def _elements_before(tile, tiles, size, BS: tl.constexpr):
    """How many positions lie before a tile."""
    return tile // tiles * size + tl.minimum(tile % tiles * BS, size)


@triton.jit
def _read(x, n, t, c, xn, xc, xs, low, low_n, low_c, high, high_n, high_c, size, known, BS: tl.constexpr, TYPE: tl.constexpr):
    """A tile, and which of its elements count."""
    s, there = positions(t, size, BS)
    counted = known[:, None] & there[None, :]
    values = load(x, n, c, s, xn, xc, xs, counted, TYPE)
    if low is not None:
        counted = counted & between(values, n, c, low, low_n, low_c, high, high_n, high_c, known, TYPE)
    return values, counted


@triton.jit
def moments(
    x, xn, xc, xs, low, low_n, low_c, high, high_n, high_c, found, layer, channels, size, tiles, run, span, splits, blocks,
    BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Mean, variance and count of a program's elements, by deviations from a guess at the mean.

    The guess is the mean of the first tile that has elements which count: near enough for float32 sums of the rest.
    """
    row, block, begin, end = share(run, span, splits, blocks)
    c = block * BC + tl.arange(0, BC)
    known = c < channels
    pivot, seen = tl.zeros((BC,), TYPE), tl.zeros((BC,), TYPE)
    i, n, t, missing = begin, begin // tiles, begin % tiles, 1
    while (i < end) & (missing > 0):
        values, counted = _read(x, n, t, c, xn, xc, xs, low, low_n, low_c, high, high_n, high_c, size, known, BS, TYPE)
        held = tl.sum(tl.where(counted, 1.0, 0.0).to(TYPE), 1)
        guess = tl.sum(tl.where(counted, values, 0.0), 1) / tl.where(held > 0, held, 1)
        pivot = tl.where(seen > 0, pivot, guess)
        seen += held
        missing = tl.sum((known & (seen == 0)).to(tl.int32), 0)
        i, n, t = following(i, n, t, tiles)
    pivot = tl.where(tl.abs(pivot) < float("inf"), pivot, 0.0)

    first, second, inside = tl.zeros((BC, BS), TYPE), tl.zeros((BC, BS), TYPE), tl.zeros((BC, BS), TYPE)
    i, n, t = begin, begin // tiles, begin % tiles
    while i < end:
        values, counted = _read(x, n, t, c, xn, xc, xs, low, low_n, low_c, high, high_n, high_c, size, known, BS, TYPE)
        deviation = tl.where(counted, values - pivot[:, None], 0.0)
        first += deviation
        second += deviation * deviation
        if low is not None:
            inside += tl.where(counted, 1.0, 0.0).to(TYPE)
        i, n, t = following(i, n, t, tiles)

    if low is not None:
        count = tl.sum(inside, 1).to(tl.float64)
    else:
        every = _elements_before(end, tiles, size, BS) - _elements_before(begin, tiles, size, BS)
        count = tl.zeros((BC,), tl.float64) + every.to(tl.float64)
    divisor = tl.where(count > 0, count, 1.0)
    rest = tl.sum(first, 1).to(tl.float64) / divisor
    var = tl.sum(second, 1).to(tl.float64) / divisor - rest * rest
    where = found + row * channels + c
    tl.store(where, pivot.to(tl.float64) + rest, mask=known)
    tl.store(where + layer, tl.where(var < 0, 0.0, var), mask=known)  # not a maximum, which would lose a NaN
    tl.store(where + 2 * layer, count, mask=known)


@triton.jit
def merge_moments(found, found_layer, merged, layer, channels, splits, blocks, BC: tl.constexpr, BK: tl.constexpr):
    """The law of total variance, weighted by counts, in the order of the splits; one that counts nothing changes nothing."""
    program = tl.program_id(0).to(tl.int64)
    block, outer = program % blocks, program // blocks
    c = block * BC + tl.arange(0, BC)
    known = c < channels
    rows = found + outer * splits * channels + c[None, :]
    total, middle = tl.zeros((BC,), tl.float64), tl.zeros((BC,), tl.float64)
    start = tl.zeros((), tl.int64)
    while start < splits:
        k = start + tl.arange(0, BK)
        there = (k < splits)[:, None] & known[None, :]
        means = tl.load(rows + k[:, None] * channels, mask=there, other=0)
        counts = tl.load(rows + k[:, None] * channels + 2 * found_layer, mask=there, other=0)
        total += tl.sum(counts, 0)
        middle += tl.sum(counts * means, 0)
        start += BK
    divisor = tl.where(total > 0, total, 1.0)
    middle = middle / divisor
    spread = tl.zeros((BC,), tl.float64)
    start = tl.zeros((), tl.int64)
    while start < splits:
        k = start + tl.arange(0, BK)
        there = (k < splits)[:, None] & known[None, :]
        means = tl.load(rows + k[:, None] * channels, mask=there, other=0)
        variances = tl.load(rows + k[:, None] * channels + found_layer, mask=there, other=0)
        counts = tl.load(rows + k[:, None] * channels + 2 * found_layer, mask=there, other=0)
        away = means - middle[None, :]
        spread += tl.sum(tl.where(counts != 0, counts * (variances + away * away), 0.0), 0)
        start += BK
    where = merged + outer * channels + c
    tl.store(where, middle, mask=known)
    tl.store(where + layer, spread / divisor, mask=known)
    tl.store(where + 2 * layer, total, mask=known)


@triton.jit
def grad_sums(
    g, gn, gc, gs, x, xn, xc, xs, center, center_n, center_c, low, low_n, low_c, high, high_n, high_c,
    scale, scale_n, scale_c, bias, bias_n, bias_c, level, level_n, level_c, found, layer, channels, size, tiles, run, span, splits, blocks,
    BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The sums of dy and of dy * (x - center), between the bounds, or as it reaches what was bent, and of the dy that go to a floor."""
    row, block, begin, end = share(run, span, splits, blocks)
    c = block * BC + tl.arange(0, BC)
    known = c < channels
    total, product, below = tl.zeros((BC, BS), TYPE), tl.zeros((BC, BS), TYPE), tl.zeros((BC, BS), TYPE)
    i, n, t = begin, begin // tiles, begin % tiles
    while i < end:
        values, counted = _read(x, n, t, c, xn, xc, xs, low, low_n, low_c, high, high_n, high_c, size, known, BS, TYPE)
        s, there = positions(t, size, BS)
        grad = load(g, n, c, s, gn, gc, gs, known[:, None] & there[None, :], TYPE)
        moved = values - statistic(center, n, c, center_n, center_c, known, TYPE)
        if level is not None:
            y = moved * statistic(scale, n, c, scale_n, scale_c, known, TYPE) + statistic(
                bias, n, c, bias_n, bias_c, known, TYPE
            )
            kept = through(grad, y, statistic(level, n, c, level_n, level_c, known, TYPE), KIND)
            below += tl.where(counted, grad - kept, 0.0)
            grad = kept
        total += tl.where(counted, grad, 0.0)
        product += tl.where(counted, grad * moved, 0.0)
        i, n, t = following(i, n, t, tiles)
    where = found + row * channels + c
    tl.store(where, tl.sum(total, 1), mask=known)
    tl.store(where + layer, tl.sum(product, 1), mask=known)
    if KIND == "floor":
        tl.store(where + 2 * layer, tl.sum(below, 1), mask=known)


@triton.jit
def merge_sums(
    found, found_layer, merged, layer, channels, splits, blocks, LAYERS: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr
):
    """Plain sums, in the order of the splits."""
    program = tl.program_id(0).to(tl.int64)
    block, outer = program % blocks, program // blocks
    c = block * BC + tl.arange(0, BC)
    known = c < channels
    rows = found + outer * splits * channels + c[None, :]
    for kind in tl.static_range(LAYERS):
        total = tl.zeros((BC,), tl.float64)
        start = tl.zeros((), tl.int64)
        while start < splits:
            k = start + tl.arange(0, BK)
            there = (k < splits)[:, None] & known[None, :]
            total += tl.sum(tl.load(rows + k[:, None] * channels + kind * found_layer, mask=there, other=0), 0)
            start += BK
        tl.store(merged + kind * layer + outer * channels + c, total, mask=known)

"""The kernels that read x once: a cell, or a set of adjacent channels of a sample, is held on the chip by one program.

A program has all positions of `BC` channels of one sample: of one set if `WHOLE`, of as many cells else. Statistics of sets are (N, sets).
"""

import triton
import triton.language as tl

from normsmith.kernels.cuda.tiles import load, positions, root, statistic, store


@triton.jit
def _channels(block, members, channels, WHOLE: tl.constexpr, BC: tl.constexpr):
    """The channels of a block, and which of them there are."""
    c = block * (members if WHOLE else BC) + tl.arange(0, BC)
    return c, (c < (block + 1) * members) & (c < channels) if WHOLE else c < channels


@triton.jit
def _total(values, WHOLE: tl.constexpr):
    """The sum over each cell, or over all, as a column."""
    found = tl.sum(values, 1)[:, None]
    return found * 0 + tl.sum(found, 0)[None, :] if WHOLE else found


@triton.jit
def _held(block, c, known, WHOLE: tl.constexpr):
    """Where among the sets of a sample the statistics of each row lie, and which rows write them."""
    return (c * 0 + block, known & (c == tl.min(c, 0))) if WHOLE else (c, known)


@triton.jit
def standardize(
    x, xn, xc, xs, y, yn, yc, ys, weight, bias, mean, var, inverse, eps, count, members, channels, size, sets, blocks,
    CENTERED: tl.constexpr, WHOLE: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Mean, variance and one over the deviation, and the output, from one read of x."""
    program = tl.program_id(0).to(tl.int64)
    n, block = program // blocks, program % blocks
    c, known = _channels(block, members, channels, WHOLE, BC)
    s, there = positions(0, size, BS)
    there = known[:, None] & there[None, :]
    values = load(x, n, c, s, xn, xc, xs, there, TYPE)
    middle = _total(values, WHOLE) / count
    away = tl.where(there, values - middle, 0.0)
    rest = _total(away, WHOLE) / count  # what rounding left in the mean
    spread = _total(away * away, WHOLE) / count - rest * rest
    spread = tl.where(spread < 0, 0.0, spread)  # not a maximum, which would lose a NaN
    middle += rest
    power = spread if CENTERED else spread + middle * middle
    one = 1 / root(power + eps, TYPE)
    scale = one
    moved = away - rest if CENTERED else values
    if weight is not None:
        scale = one * statistic(weight, 0, c, 0, 1, known, TYPE)
    moved = moved * scale
    if bias is not None:
        moved += statistic(bias, 0, c, 0, 1, known, TYPE)
    store(y, n, c, s, yn, yc, ys, there, moved)
    held, writes = _held(block, c, known, WHOLE)
    where = n * sets + held
    tl.store(mean + where, tl.sum(middle, 1), mask=writes)
    tl.store(var + where, tl.sum(spread, 1), mask=writes)
    tl.store(inverse + where, tl.sum(one, 1), mask=writes)


@triton.jit
def unstandardize(
    g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, weight, mean, inverse, found, layer,
    count, members, channels, size, sets, blocks, samples, span,
    CENTERED: tl.constexpr, WHOLE: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of x from one read of dy and x, and a row of the sums that weight and bias get, over `span` samples."""
    program = tl.program_id(0).to(tl.int64)
    row, block = program // blocks, program % blocks
    c, known = _channels(block, members, channels, WHOLE, BC)
    s, each = positions(0, size, BS)
    there = known[:, None] & each[None, :]
    held, _ = _held(block, c, known, WHOLE)
    by_weight, by_bias = tl.zeros((BC,), TYPE), tl.zeros((BC,), TYPE)
    n, end = row * span, tl.minimum(row * span + span, samples)
    while n < end:
        grad = load(g, n, c, s, gn, gc, gs, there, TYPE)
        one = statistic(inverse, n, held, sets, 1, known, TYPE)
        middle = statistic(mean, n, held, sets, 1, known, TYPE)
        values = load(x, n, c, s, xn, xc, xs, there, TYPE)
        moved = tl.where(there, (values - middle if CENTERED else values) * one, 0.0)
        if found is not None:
            by_weight += tl.sum(grad * moved, 1)
            by_bias += tl.sum(grad, 1)
        if weight is not None:
            grad = grad * statistic(weight, 0, c, 0, 1, known, TYPE)
        slope = _total(grad * moved, WHOLE) / count
        result = grad - moved * slope
        if CENTERED:
            result -= _total(grad, WHOLE) / count
        store(d, n, c, s, dn, dc, ds, there, result * one)
        n += 1
    if found is not None:
        where = found + row * channels + c
        tl.store(where, by_weight, mask=known)
        tl.store(where + layer, by_bias, mask=known)

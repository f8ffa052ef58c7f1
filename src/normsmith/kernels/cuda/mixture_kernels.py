"""The kernels of mixtures: their tiles have a third dimension, of `BK` components, and shares are found where an element is read.

Tables are contiguous, (K, C). `given` are the shares of a joint mixture, (K, N*S), or None where they follow from the density in the
tables `constant`, `mean` and `precision`. What is not among the `number` components, or not in x, has the share zero. Work is shared out
and merged as in `reduce.py`; results are numbered component by component, K*C a row.
"""

import triton
import triton.language as tl

from normsmith.kernels.cuda.apply import own
from normsmith.kernels.cuda.reduce import share
from normsmith.kernels.cuda.tiles import following, load, positions, store


@triton.jit
def _table(values, k, c, channels, there, TYPE: tl.constexpr):
    """The numbers of components and channels beside a tile; zero where nothing is."""
    return tl.load(values + k[:, None] * channels + c[None, :], mask=there, other=0).to(TYPE)[:, :, None]


@triton.jit
def _density(given, constant, mean, precision, k, c, channels, there, TYPE: tl.constexpr):
    """The tables of the density; what takes the place of them where shares are given is not used."""
    nothing = tl.zeros_like(there).to(TYPE)[:, :, None]
    first, second, third = nothing, nothing, nothing
    if given is None:
        first, second = _table(constant, k, c, channels, there, TYPE), _table(mean, k, c, channels, there, TYPE)
        third = _table(precision, k, c, channels, there, TYPE)
    return first, second, third


@triton.jit
def _softmax(logits, real):
    """Shares from logits, the largest subtracted, so that nothing overflows however far away a point is."""
    logits = tl.where(real, logits, -float("inf"))
    parts = tl.exp(logits - tl.max(logits, 0, keep_dims=True))
    return parts / tl.sum(parts, 0, keep_dims=True)


@triton.jit
def _read(
    x, n, t, c, xn, xc, xs, size, known, given, constant, mean, precision, k, number, points,
    MASKED: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """A tile with its positions and which of its elements there are; its values, and its shares, zero where an element does not count."""
    s, inside = positions(t, size, BS)
    there = known[:, None] & inside[None, :]
    values, real = load(x, n, c, s, xn, xc, xs, there, TYPE), (k < number)[:, None, None]
    counted = there
    if MASKED:
        counted = there & (values <= float("inf"))  # no NaN
        values = tl.where(counted, values, 0.0)
    values = values[None, :, :]
    if given is None:
        away = values - mean
        held = _softmax(constant - 0.5 * precision * away * away, real)
    else:
        where = given + k[:, None, None] * points + n * size + s[None, None, :]
        held = tl.load(where, mask=real & inside[None, None, :], other=0).to(TYPE)
    return s, there, values, tl.where(counted[None, :, :], held, 0.0)


@triton.jit
def joint_shares(
    x, xn, xc, xs, constant, mean, precision, found, number, points, channels, size, tiles,
    MASKED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The shares of a tile's points, all channels of each; an element that does not count adds nothing to its point's logits."""
    program = tl.program_id(0).to(tl.int64)
    n, t = program // tiles, program % tiles
    s, inside = positions(t, size, BS)
    k = tl.arange(0, BK).to(tl.int64)
    squares = tl.zeros((BK, BC, BS), TYPE)
    start = tl.zeros((), tl.int64)
    while start < channels:
        c = start + tl.arange(0, BC)
        known = c < channels
        real = (k < number)[:, None] & known[None, :]
        there = known[:, None] & inside[None, :]
        values = load(x, n, c, s, xn, xc, xs, there, TYPE)
        if MASKED:
            there = there & (values <= float("inf"))  # no NaN
        away = values[None, :, :] - _table(mean, k, c, channels, real, TYPE)
        part = _table(precision, k, c, channels, real, TYPE) * away * away
        squares += tl.where(there[None, :, :], part, 0.0)
        start += BC
    real = (k < number)[:, None]
    level = tl.load(constant + k, mask=k < number, other=0).to(TYPE)[:, None]
    held = _softmax(level - 0.5 * tl.sum(squares, 1), real)
    tl.store(found + k[:, None] * points + n * size + s[None, :], held, mask=real & inside[None, :])


@triton.jit
def moments(
    x, xn, xc, xs, given, constant, mean, precision, number, points, found, layer, channels, size, tiles, run, span, splits, blocks,
    MASKED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The weighted mean and variance and the sum of shares of every component.

    Every thread moves its own means as it goes: no origin is near to all components, so that sums of squares from one would cancel.
    """
    row, block, begin, end = share(run, span, splits, blocks)
    c, k = block * BC + tl.arange(0, BC), tl.arange(0, BK).to(tl.int64)
    known = c < channels
    real = (k < number)[:, None] & known[None, :]
    constants, means, precisions = _density(given, constant, mean, precision, k, c, channels, real, TYPE)
    weight, middle, spread = tl.zeros((BK, BC, BS), TYPE), tl.zeros((BK, BC, BS), TYPE), tl.zeros((BK, BC, BS), TYPE)
    i, n, t = begin, begin // tiles, begin % tiles
    while i < end:
        _, _, values, held = _read(
            x, n, t, c, xn, xc, xs, size, known, given, constants, means, precisions, k, number, points, MASKED, BS, TYPE
        )
        weight += held
        away = values - middle
        middle += away * (held / tl.where(weight > 0, weight, 1.0))
        spread += held * away * (values - middle)
        i, n, t = following(i, n, t, tiles)

    count = tl.sum(weight, 2)
    divisor = tl.where(count > 0, count, 1.0)
    guess = tl.sum(weight * middle, 2) / divisor
    away = middle - guess[:, :, None]
    rest = tl.sum(weight * away, 2).to(tl.float64) / divisor
    var = tl.sum(spread + weight * away * away, 2).to(tl.float64) / divisor - rest * rest
    where = found + (row * number + k[:, None]) * channels + c[None, :]
    tl.store(where, guess.to(tl.float64) + rest, mask=real)
    tl.store(where + layer, tl.where(var < 0, 0.0, var), mask=real)  # not a maximum, which would lose a NaN
    tl.store(where + 2 * layer, count.to(tl.float64), mask=real)


@triton.jit
def affine(
    x, xn, xc, xs, y, yn, yc, ys, given, constant, mean, precision, center, scale, bias, number, points, channels, size, tiles, blocks,
    BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """y = sum_k share_k * (x - center_k) * scale_k + bias."""
    n, t, c, known = own(tiles, blocks, channels, BC)
    k = tl.arange(0, BK).to(tl.int64)
    real = (k < number)[:, None] & known[None, :]
    constants, means, precisions = _density(given, constant, mean, precision, k, c, channels, real, TYPE)
    s, there, values, held = _read(
        x, n, t, c, xn, xc, xs, size, known, given, constants, means, precisions, k, number, points, False, BS, TYPE
    )
    moved = (values - _table(center, k, c, channels, real, TYPE)) * _table(scale, k, c, channels, real, TYPE)
    level = tl.load(bias + c, mask=known, other=0).to(TYPE)[:, None]
    store(y, n, c, s, yn, yc, ys, there, tl.sum(held * moved, 0) + level)


@triton.jit
def grad_sums(
    g, gn, gc, gs, x, xn, xc, xs, given, constant, mean, precision, center, number, points,
    found, layer, channels, size, tiles, run, span, splits, blocks,
    MASKED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The sums of dy * share and of dy * share * (x - center)."""
    row, block, begin, end = share(run, span, splits, blocks)
    c, k = block * BC + tl.arange(0, BC), tl.arange(0, BK).to(tl.int64)
    known = c < channels
    real = (k < number)[:, None] & known[None, :]
    constants, means, precisions = _density(given, constant, mean, precision, k, c, channels, real, TYPE)
    centers = _table(center, k, c, channels, real, TYPE)
    total, product = tl.zeros((BK, BC, BS), TYPE), tl.zeros((BK, BC, BS), TYPE)
    i, n, t = begin, begin // tiles, begin % tiles
    while i < end:
        s, there, values, held = _read(
            x, n, t, c, xn, xc, xs, size, known, given, constants, means, precisions, k, number, points, MASKED, BS, TYPE
        )
        part = load(g, n, c, s, gn, gc, gs, there, TYPE)[None, :, :] * held
        total += part
        product += part * (values - centers)
        i, n, t = following(i, n, t, tiles)
    where = found + (row * number + k[:, None]) * channels + c[None, :]
    tl.store(where, tl.sum(total, 2), mask=real)
    tl.store(where + layer, tl.sum(product, 2), mask=real)


@triton.jit
def grad_input(
    g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, given, constant, mean, precision, scale, center, offset, slope, pivot, spread,
    number, points, found, layer, channels, size, tiles, run, span, splits, blocks,
    THROUGH: tl.constexpr, MASKED: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """dx, written as it is found; and, through the shares, the gradients of constant, mean and precision."""
    row, block, begin, end = share(run, span, splits, blocks)
    c, k = block * BC + tl.arange(0, BC), tl.arange(0, BK).to(tl.int64)
    known = c < channels
    real = (k < number)[:, None] & known[None, :]
    constants, means, precisions = _density(given, constant, mean, precision, k, c, channels, real, TYPE)
    scales, offsets = _table(scale, k, c, channels, real, TYPE), _table(offset, k, c, channels, real, TYPE)
    slopes, pivots = _table(slope, k, c, channels, real, TYPE), _table(pivot, k, c, channels, real, TYPE)
    if THROUGH:
        centers, spreads = _table(center, k, c, channels, real, TYPE), _table(spread, k, c, channels, real, TYPE)
        whole, once, twice = tl.zeros((BK, BC, BS), TYPE), tl.zeros((BK, BC, BS), TYPE), tl.zeros((BK, BC, BS), TYPE)
    i, n, t = begin, begin // tiles, begin % tiles
    while i < end:
        s, there, values, held = _read(
            x, n, t, c, xn, xc, xs, size, known, given, constants, means, precisions, k, number, points, MASKED, BS, TYPE
        )
        direct = load(g, n, c, s, gn, gc, gs, there, TYPE)[None, :, :] * scales
        direct = tl.where(real[:, :, None], direct, 0.0)  # of an infinite dy and no component would be NaN
        away = values - pivots
        written = tl.sum(held * (direct + (offsets + 2 * slopes * away)), 0)
        if THROUGH:
            worth = direct * (values - centers) + (offsets * away + slopes * (away * away - spreads))
            logit = held * (worth - tl.sum(held * worth, 0, keep_dims=True))
            far = values - means
            product = logit * far
            written -= tl.sum(product * precisions, 0)
            whole += logit
            once += product
            twice += product * far
        store(d, n, c, s, dn, dc, ds, there, written)
        i, n, t = following(i, n, t, tiles)
    if THROUGH:
        where = found + (row * number + k[:, None]) * channels + c[None, :]
        tl.store(where, tl.sum(whole, 2), mask=real)
        tl.store(where + layer, tl.sum(once * precisions, 2), mask=real)
        tl.store(where + 2 * layer, -0.5 * tl.sum(twice, 2), mask=real)

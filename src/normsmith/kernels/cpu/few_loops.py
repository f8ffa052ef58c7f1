"""A small tensor standardized, and the way back, each in one call: as separate operations each step costs more than its work.

Arguments are doubles, at the places named below: three strided tensors, sizes, and addresses of

    kept        what the way back needs, rows of N*C: those named below, then mean and variance of every source that is no single cell
    scratch     5*N*C doubles
    weight, bias, level    with the step between samples, C or 0; 0 for an address where there is none
    towards     mean and variance of every channel that standardized data are drawn to, and the two limits of that; or 0
    stage       `settle` or `pull`, whatever the layout
    d_weight, d_bias, d_level    gradients, in the shape of what they belong to, and type of x; 0 where nobody asks

Behind them is a record for each source. A source are the moments of blocks of so many adjacent samples by so many adjacent channels: one
by one are cells, all by one the batch, one by all a layer. What standardizes a range of channels is the sum of its sources, times their
shares: weights, at the addresses given, or the softmax of these, or 1 where there are none. Behind these are the addresses for their
gradients, and the shares and their gradients themselves.
"""

import numpy as np

from normsmith.kernels.cpu import columns, rows
from normsmith.kernels.cpu.memory import call, inner, item_size, sequential, view
from normsmith.kernels.cpu.stages import Stage

WIDE = np.float64(0)
# Numbers of numpy's: for each of Python's own, numba would compile what is called with it anew.
X, Y, DY, SIZES, KEPT, SCRATCH, WEIGHT, BIAS, LEVEL = np.array([0, 3, 6, 9, 12, 13, 14, 16, 18])
EPS, CENTERED, TOWARDS, D_WEIGHT, D_BIAS, D_LEVEL, SOFTMAX, SOURCES, STAGE, FIRST = np.array(
    [20, 21, 22, 26, 27, 28, 29, 30, 31, 32]
)
SAMPLES, CHANNELS, BEGIN, END, WEIGHTS, ROW, D_WEIGHTS, SHARES, D_SHARES, RECORD = np.array([0, 1, 2, 3, 4, 6, 7, 9, 11, 13])
CENTER, SCALE, SHIFT, LEVELS, INVERSE, MIDDLE, MEAN, VAR, RATIO, DRIFT, ROWS = np.arange(11)
NOTHING, ONE = np.arange(2)


@inner
def _place(given, at):
    """Three numbers: sizes, or address, stride of samples, and that of channels in rows, of positions in columns."""
    place = view(given, WIDE, at, DY)
    return np.int64(place[0]), np.int64(place[1]), np.int64(place[2])


@inner
def _record(given, k):
    """That of a source."""
    return view(given, WIDE, FIRST + RECORD * k, RECORD)


@inner
def _share_out(zero, given, number, softmax):
    """The shares of all sources, for the means and for the variances."""
    for both in range(2):
        most, total = -np.inf, 0.0
        for k in range(number):
            own = _record(given, k)
            share, address = 1.0, np.int64(own[WEIGHTS + both])
            if address != 0:
                share = np.float64(view(address, zero, NOTHING, ONE)[0])
            own[SHARES + both] = share
            most = max(most, share)
        if softmax:
            for k in range(number):
                own = _record(given, k)
                own[SHARES + both] = np.exp(own[SHARES + both] - most)
                total += own[SHARES + both]
            for k in range(number):
                _record(given, k)[SHARES + both] /= total


@inner
def _pool(moments, own, cells, channels, tall, wide):
    """Mean and variance of blocks of so many samples by so many channels, in each of their cells."""
    for n in range(0, cells, tall * channels):
        stop = min(n + tall * channels, cells)
        share = 1.0 / ((stop - n) // channels * wide)
        for c in range(0, channels, wide):
            middle, spread = 0.0, 0.0
            for i in range(n + c, stop, channels):
                for j in range(i, i + wide):
                    middle += moments[j]
            middle *= share
            for i in range(n + c, stop, channels):
                for j in range(i, i + wide):
                    away = moments[j] - middle
                    spread += moments[cells + j] + away * away
            for i in range(n + c, stop, channels):
                for j in range(i, i + wide):
                    own[j], own[cells + j] = middle, spread * share


@Stage
def settle(zero, given, begin, end, core):
    """From the moments of cells, in scratch, to the affine map of each."""
    t, (samples, channels, _) = view(given, WIDE, NOTHING, FIRST), _place(given, SIZES)
    cells, number = samples * channels, np.int64(t[SOURCES])
    found, kept = view(np.int64(t[SCRATCH]), WIDE, cells, 2 * cells), view(np.int64(t[KEPT]), zero, NOTHING, ROWS * cells)
    middle, power = MIDDLE * cells, INVERSE * cells
    for i in range(2 * cells):
        kept[MEAN * cells + i] = found[i]
    for i in range(cells):
        kept[middle + i], kept[power + i] = zero, zero
    _share_out(zero, given, number, t[SOFTMAX] != 0)
    for k in range(number):
        source = _record(given, k)
        row, tall, wide = np.int64(source[ROW]), np.int64(source[SAMPLES]), np.int64(source[CHANNELS])
        own, first, last = view(np.int64(t[KEPT]), zero, row * cells, 2 * cells), np.int64(source[BEGIN]), np.int64(source[END])
        if row != MEAN:
            _pool(found, own, cells, channels, tall, wide)
        for n in range(0, cells, channels):
            for i in range(n + first, n + last):
                kept[middle + i] += own[i] * source[SHARES]
                kept[power + i] += own[cells + i] * source[SHARES + 1]
    _map(zero, t, kept, cells, channels)


@inner
def _map(zero, t, kept, cells, channels):
    """From mean and variance of every cell to its affine map, and one over the deviation in the variance's place."""
    weight, bias = view(np.int64(t[WEIGHT]), zero, NOTHING, cells), view(np.int64(t[BIAS]), zero, NOTHING, cells)
    level, mean = view(np.int64(t[LEVEL]), zero, NOTHING, cells), view(np.int64(t[TOWARDS]), zero, NOTHING, channels)
    var, most, farthest = view(np.int64(t[TOWARDS + 1]), zero, NOTHING, channels), t[TOWARDS + 2], t[TOWARDS + 3]
    for i in range(cells):
        n, c = i // channels, i % channels
        middle, power, ratio, drift = np.float64(kept[MIDDLE * cells + i]), np.float64(kept[INVERSE * cells + i]), 1.0, 0.0
        root = np.sqrt(power + (0.0 if t[CENTERED] else middle * middle) + t[EPS])
        if t[TOWARDS] != 0:  # a NaN stays one
            other = np.sqrt(var[c] + t[EPS])
            ratio, drift = root / other, (middle - mean[c]) / other
            ratio = most if ratio > most else 1.0 / most if ratio < 1.0 / most else ratio
            drift = farthest if drift > farthest else -farthest if drift < -farthest else drift
        own = np.float64(weight[n * np.int64(t[WEIGHT + 1]) + c]) if t[WEIGHT] != 0 else 1.0
        kept[CENTER * cells + i], kept[SCALE * cells + i] = middle if t[CENTERED] else 0.0, ratio / root * own
        kept[SHIFT * cells + i] = drift * own + (bias[n * np.int64(t[BIAS + 1]) + c] if t[BIAS] != 0 else zero)
        kept[LEVELS * cells + i] = level[n * np.int64(t[LEVEL + 1]) + c] if t[LEVEL] != 0 else zero
        kept[INVERSE * cells + i], kept[RATIO * cells + i], kept[DRIFT * cells + i] = 1.0 / root, ratio, drift


@Stage
def pull(zero, given, begin, end, core):
    """From the sums of dy and dy * (x - center) to the gradients of all that the affine map was made of, and a line in x for each cell."""
    t, (samples, channels, size) = view(given, WIDE, NOTHING, FIRST), _place(given, SIZES)
    cells = samples * channels
    sums, kept = view(np.int64(t[SCRATCH]), WIDE, NOTHING, 3 * cells), view(np.int64(t[KEPT]), zero, NOTHING, ROWS * cells)
    lines = view(np.int64(t[SCRATCH]) + 24 * cells, zero, NOTHING, 2 * cells)
    _fold(zero, np.int64(t[D_LEVEL]), t[LEVEL + 1], sums, 2 * cells, cells, channels)
    _fold(zero, np.int64(t[D_BIAS]), t[BIAS + 1], sums, NOTHING, cells, channels)
    for i in range(cells):
        total, scaled = sums[i], sums[cells + i] * kept[INVERSE * cells + i]
        sums[2 * cells + i] = scaled * kept[RATIO * cells + i] + total * kept[DRIFT * cells + i] if t[TOWARDS] != 0 else scaled
        d_var = -0.5 * scaled * kept[SCALE * cells + i] * kept[INVERSE * cells + i]
        sums[i] = -total * kept[SCALE * cells + i] if t[CENTERED] else 2.0 * kept[MIDDLE * cells + i] * d_var
        sums[cells + i], lines[i], lines[cells + i] = d_var, zero, zero
    _fold(zero, np.int64(t[D_WEIGHT]), t[WEIGHT + 1], sums, 2 * cells, cells, channels)
    number = np.int64(t[SOURCES])
    for k in range(number):
        source = _record(given, k)
        own = view(np.int64(t[KEPT]), zero, np.int64(source[ROW]) * cells, 2 * cells)
        _send(source, sums, own, kept, lines, cells, channels, size)
    _return_shares(zero, given, number, t[SOFTMAX] != 0)


@inner
def _return_shares(zero, given, number, softmax):
    """From the gradients of shares to those of weights."""
    for both in range(2):
        between = 0.0
        for k in range(number):
            between += _record(given, k)[SHARES + both] * _record(given, k)[D_SHARES + both]
        for k in range(number):
            own = _record(given, k)
            if own[D_WEIGHTS + both] != 0:
                found = own[D_SHARES + both]
                target = view(np.int64(own[D_WEIGHTS + both]), zero, NOTHING, ONE)
                target[0] = own[SHARES + both] * (found - between) if softmax else found


@inner
def _send(source, sums, own, kept, lines, cells, channels, size):
    """The gradients of mean and variance, the first two sums, sent to a source: its shares, and the lines of the cells in its blocks."""
    tall, wide = np.int64(source[SAMPLES]) * channels, np.int64(source[CHANNELS])
    begin, end = np.int64(source[BEGIN]), np.int64(source[END])
    source[D_SHARES], source[D_SHARES + 1] = 0.0, 0.0
    for n in range(0, cells, tall):
        stop = min(n + tall, cells)
        share = 1.0 / ((stop - n) // channels * wide * size)
        for c in range(0, channels, wide):
            first, second = 0.0, 0.0
            for m in range(n, stop, channels):
                for i in range(m + max(c, begin), m + min(c + wide, end)):
                    first += sums[i]
                    second += sums[cells + i]
            mean = np.float64(own[n + c])
            source[D_SHARES] += first * mean
            source[D_SHARES + 1] += second * own[cells + n + c]
            level, rise = first * source[SHARES] * share, 2.0 * second * source[SHARES + 1] * share
            for m in range(n + c, stop, channels):
                for i in range(m, m + wide):
                    lines[i] += rise
                    lines[cells + i] += level + rise * (kept[MEAN * cells + i] - mean)


@inner
def _fold(zero, address, step, values, start, cells, channels):
    """The gradient of a weight, bias or level from that in every cell; with a step, every cell has its own."""
    if address != 0:
        found = view(address, zero, NOTHING, cells)
        for c in range(channels):
            total = 0.0
            for i in range(c, cells, channels):
                total += values[start + i]
                if step != 0:
                    found[i] = values[start + i]
            if step == 0:
                found[c] = total


@inner
def _go_on(zero, given):
    """The stage between the two passes over x."""
    call(np.int64(view(given, WIDE, STAGE, ONE)[0]), zero, given, NOTHING, NOTHING, NOTHING)


@inner
def _places(zero, given):
    """Where center, scale, shift, level, pivot, slope and offset are, and the three sums of each cell."""
    t, (samples, channels, _) = view(given, WIDE, NOTHING, FIRST), _place(given, SIZES)
    item, start, sums = samples * channels * item_size(zero), np.int64(t[KEPT]), np.int64(t[SCRATCH])
    more, lines = samples * channels * item_size(WIDE), sums + 3 * samples * channels * item_size(WIDE)
    affine = start + CENTER * item, start + SCALE * item, start + SHIFT * item, start + LEVELS * item
    return affine, (lines, start + MEAN * item, lines + item), (sums, sums + more, sums + 2 * more)


@sequential
def rows_forward(zero, kind, given):
    """y from x, where the positions of a cell are adjacent."""
    (samples, channels, size), (x, xn, xc), (y, yn, yc) = _place(given, SIZES), _place(given, X), _place(given, Y)
    cells, ((center, scale, shift, level), _, (count, mean, var)) = samples * channels, _places(zero, given)
    rows.moments(zero, x, xn, xc, channels, size, None, None, 0, count, mean, var, 0, cells)
    _go_on(zero, given)
    rows.affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, shift, kind, level, channels, 0, cells)


@sequential
def columns_forward(zero, kind, given):
    """y from x, where the channels of a position are adjacent."""
    (samples, channels, size), (x, xn, xs), (y, yn, ys) = _place(given, SIZES), _place(given, X), _place(given, Y)
    (center, scale, shift, level), _, (count, mean, var) = _places(zero, given)
    columns.moments(zero, x, xn, xs, channels, size, 1, None, None, 0, count, mean, var, 0, samples)
    _go_on(zero, given)
    columns.affine(zero, x, xn, xs, y, yn, ys, channels, size, 1, center, scale, shift, kind, level, channels, 0, samples)


@sequential
def rows_backward(zero, kind, below, given):
    """dx from dy and x, and all other gradients; `below`, unless None, is where the sums for the level go, the third."""
    (samples, channels, size), (x, xn, xc) = _place(given, SIZES), _place(given, X)
    (d, dn, dc), (g, gn, gc) = _place(given, Y), _place(given, DY)
    cells, ((center, scale, shift, level), (slope, pivot, offset), (total, product, _)) = (
        samples * channels,
        _places(zero, given),
    )
    rows.grad_sums(
        zero, g, gn, gc, x, xn, xc, channels, size, center, None, None, scale, shift, kind, level, channels, total, product, below,
        0, cells
    )  # fmt: skip
    _go_on(zero, given)
    rows.grad_input(
        zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, None, None, center, shift, kind, level,
        channels, 0, cells
    )  # fmt: skip


@sequential
def columns_backward(zero, kind, below, given):
    """The same where the channels of a position are adjacent."""
    (samples, channels, size), (x, xn, xs) = _place(given, SIZES), _place(given, X)
    (d, dn, ds), (g, gn, gs) = _place(given, Y), _place(given, DY)
    (center, scale, shift, level), (slope, pivot, offset), (total, product, _) = _places(zero, given)
    columns.grad_sums(
        zero, g, gn, gs, x, xn, xs, channels, size, 1, center, None, None, scale, shift, kind, level, channels, total, product, below,
        0, samples
    )  # fmt: skip
    _go_on(zero, given)
    columns.grad_input(
        zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, 1, scale, slope, pivot, offset, None, None, center, shift, kind, level,
        channels, 0, samples
    )  # fmt: skip

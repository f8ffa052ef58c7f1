"""A small tensor standardized, and the way back, each in one call: as separate operations each step costs more than its work.

Arguments are doubles, at the places named below: three strided tensors, sizes, and addresses of

    kept        what the way back needs, rows of N*C: those named below, then mean and variance of every source that is no single cell
    scratch     5*N*C doubles
    weight, bias, level    with the step between samples, C or 0; 0 for an address where there is none
    d_weight, d_bias, d_level    their gradients, in the shape of what they belong to, and type of x; 0 where nobody asks

Behind them is a record for each source. A source are the moments of blocks of so many adjacent samples by so many adjacent channels: one
by one are cells, all by one the batch, one by all a layer. What standardizes a range of channels is the sum of its sources, times their
weights, if they have any, at the addresses given; behind these those of the weights' gradients.
"""

import numpy as np

from normsmith.kernels.cpu import columns, rows
from normsmith.kernels.cpu.memory import item_size, sequential, view

WIDE = np.float64(0)
X, Y, DY, SIZES, KEPT, SCRATCH, WEIGHT, BIAS, LEVEL, EPS, CENTERED, D_WEIGHT, D_BIAS, D_LEVEL, SOURCES, FIRST = (
    0, 3, 6, 9, 12, 13, 14, 16, 18, 20, 21, 22, 23, 24, 25, 26
)  # fmt: skip
SAMPLES, CHANNELS, BEGIN, END, MEAN_WEIGHT, VAR_WEIGHT, ROW, D_MEAN_WEIGHT, D_VAR_WEIGHT, RECORD = range(10)
CENTER, SCALE, SHIFT, LEVELS, INVERSE, MIDDLE, MEAN, VAR, ROWS = range(9)


@sequential
def _word(given, at):
    """A number that is an address or a size."""
    return np.int64(view(given, WIDE, at, 1)[0])


@sequential
def _row(zero, given, row):
    """One of the rows of what is kept."""
    cells = _word(given, SIZES) * _word(given, SIZES + 1)
    return view(_word(given, KEPT), zero, row * cells, cells)


@sequential
def _value(zero, given, at, n, c, otherwise):
    """That of a sample and channel of weight, bias or level."""
    address = _word(given, at)
    return view(address, zero, n * _word(given, at + 1) + c, 1)[0] if address != 0 else otherwise


@sequential
def _pool(mean, var, channels, tall, wide, own_mean, own_var):
    """Mean and variance of blocks of so many samples by so many channels, in each of their cells."""
    for n in range(0, mean.size // channels, tall):
        below = min(n + tall, mean.size // channels)
        share = 1.0 / ((below - n) * wide)
        for c in range(0, channels, wide):
            middle, spread = 0.0, 0.0
            for i in range(n * channels + c, below * channels, channels):
                for j in range(i, i + wide):
                    middle += mean[j]
            middle *= share
            for i in range(n * channels + c, below * channels, channels):
                for j in range(i, i + wide):
                    away = mean[j] - middle
                    spread += var[j] + away * away
            for i in range(n * channels + c, below * channels, channels):
                for j in range(i, i + wide):
                    own_mean[j], own_var[j] = middle, spread * share


@sequential
def _settle(zero, given):
    """From the moments of cells to the affine map of each."""
    samples, channels = _word(given, SIZES), _word(given, SIZES + 1)
    cells = samples * channels
    found = view(_word(given, SCRATCH), WIDE, cells, 2 * cells)
    mean, var = _row(zero, given, MEAN), _row(zero, given, VAR)
    middle, power = _row(zero, given, MIDDLE), _row(zero, given, INVERSE)
    for i in range(cells):
        mean[i], var[i], middle[i], power[i] = found[i], found[cells + i], zero, zero
    for k in range(_word(given, SOURCES)):
        at = FIRST + RECORD * k
        row, tall, wide = _word(given, at + ROW), _word(given, at + SAMPLES), _word(given, at + CHANNELS)
        own_mean, own_var = _row(zero, given, row), _row(zero, given, row + 1)
        if row != MEAN:
            _pool(mean, var, channels, tall, wide, own_mean, own_var)
        p, q = _weight(zero, given, at + MEAN_WEIGHT), _weight(zero, given, at + VAR_WEIGHT)
        for n in range(samples):
            for i in range(n * channels + _word(given, at + BEGIN), n * channels + _word(given, at + END)):
                middle[i] += own_mean[i] * p
                power[i] += own_var[i] * q
    _map(zero, given, channels, middle, power)


@sequential
def _weight(zero, given, at):
    """That of a source, 1 where there is none."""
    address = _word(given, at)
    return np.float64(view(address, zero, 0, 1)[0]) if address != 0 else 1.0


@sequential
def _map(zero, given, channels, middle, power):
    """From mean and variance of every cell to center, scale, shift and level, and one over the deviation in the variance's place."""
    center, scale = _row(zero, given, CENTER), _row(zero, given, SCALE)
    shift, levels = _row(zero, given, SHIFT), _row(zero, given, LEVELS)
    eps, centered = view(given, WIDE, EPS, 1)[0], _word(given, CENTERED)
    for i in range(middle.size):
        n, c = i // channels, i % channels
        mean = np.float64(middle[i])
        inverse = 1.0 / np.sqrt(power[i] + (0.0 if centered else mean * mean) + eps)
        power[i], center[i] = inverse, middle[i] if centered else zero
        scale[i] = inverse * _value(zero, given, WEIGHT, n, c, 1.0)
        shift[i] = _value(zero, given, BIAS, n, c, zero)
        levels[i] = _value(zero, given, LEVEL, n, c, zero)


@sequential
def _fold(zero, given, owner, target, values):
    """The gradient of weight, bias or level from that in every cell."""
    address, step = _word(given, target), _word(given, owner + 1)
    if address != 0:
        samples, channels = _word(given, SIZES), _word(given, SIZES + 1)
        found = view(address, zero, 0, samples * channels if step else channels)
        for c in range(channels):
            total = 0.0
            for n in range(samples):
                if step:
                    found[n * step + c] = values[n * channels + c]
                total += values[n * channels + c]
            if not step:
                found[c] = total


@sequential
def _pull(zero, given):
    """From the sums of dy and dy * (x - center) to the gradients of all that the affine map was made of, and a line in x for each cell."""
    samples, channels, size = _word(given, SIZES), _word(given, SIZES + 1), _word(given, SIZES + 2)
    cells, sums = samples * channels, _word(given, SCRATCH)
    total, product = view(sums, WIDE, 0, cells), view(sums, WIDE, cells, cells)
    scale, inverse, middle = _row(zero, given, SCALE), _row(zero, given, INVERSE), _row(zero, given, MIDDLE)
    mean, centered = _row(zero, given, MEAN), _word(given, CENTERED)
    for i in range(cells):
        product[i] *= inverse[i]
    _fold(zero, given, WEIGHT, D_WEIGHT, product)
    _fold(zero, given, BIAS, D_BIAS, total)
    _fold(zero, given, LEVEL, D_LEVEL, view(sums, WIDE, 2 * cells, cells))
    slope, offset = view(_lines(given), zero, 0, cells), view(_lines(given), zero, cells, cells)
    for i in range(cells):
        product[i] *= -0.5 * scale[i] * inverse[i]  # from here on the gradient of the variance, and `total` that of the mean
        total[i] = -total[i] * scale[i] if centered else 2.0 * middle[i] * product[i]
        slope[i], offset[i] = zero, zero
    for k in range(_word(given, SOURCES)):
        at = FIRST + RECORD * k
        _send(zero, given, at, total, product, channels, size, mean, slope, offset)


@sequential
def _send(zero, given, at, d_mean, d_var, channels, size, pivot, slope, offset):
    """The gradients of one source to its weights, and to the lines of the cells in its blocks."""
    tall, wide, row = _word(given, at + SAMPLES), _word(given, at + CHANNELS), _word(given, at + ROW)
    begin, end = _word(given, at + BEGIN), _word(given, at + END)
    own_mean, own_var = _row(zero, given, row), _row(zero, given, row + 1)
    p, q = _weight(zero, given, at + MEAN_WEIGHT), _weight(zero, given, at + VAR_WEIGHT)
    d_p, d_q = 0.0, 0.0
    for n in range(0, pivot.size // channels, tall):
        below = min(n + tall, pivot.size // channels)
        share = 1.0 / ((below - n) * wide * size)
        for c in range(0, channels, wide):
            first, second = 0.0, 0.0
            for m in range(n, below):
                for i in range(m * channels + max(c, begin), m * channels + min(c + wide, end)):
                    first += d_mean[i]
                    second += d_var[i]
            here = n * channels + c
            d_p += first * own_mean[here]
            d_q += second * own_var[here]
            level, rise = first * p * share, second * q * 2.0 * share
            for m in range(n, below):
                for i in range(m * channels + c, m * channels + c + wide):
                    slope[i] += rise
                    offset[i] += level + rise * (pivot[i] - own_mean[here])
    if _word(given, at + D_MEAN_WEIGHT) != 0:
        view(_word(given, at + D_MEAN_WEIGHT), zero, 0, 1)[0] = d_p
        view(_word(given, at + D_VAR_WEIGHT), zero, 0, 1)[0] = d_q


@sequential
def _lines(given):
    """Where slope and offset of every cell are, behind the sums."""
    return _word(given, SCRATCH) + 24 * _word(given, SIZES) * _word(given, SIZES + 1)


@sequential
def _place(given, at):
    """Address, stride of samples, and that of channels in rows, of positions in columns."""
    return _word(given, at), _word(given, at + 1), _word(given, at + 2)


@sequential
def _map_of(zero, given):
    """Where center, scale, shift and level are."""
    item = _word(given, SIZES) * _word(given, SIZES + 1) * item_size(zero)
    start = _word(given, KEPT)
    return start + CENTER * item, start + SCALE * item, start + SHIFT * item, start + LEVELS * item


@sequential
def _line_of(zero, given):
    """Where slope, pivot and offset are."""
    item = _word(given, SIZES) * _word(given, SIZES + 1) * item_size(zero)
    return _lines(given), _word(given, KEPT) + MEAN * item, _lines(given) + item


@sequential
def rows_forward(zero, kind, given):
    """y from x, where the positions of a cell are adjacent."""
    (samples, channels, size), (x, xn, xc), (y, yn, yc) = _place(given, SIZES), _place(given, X), _place(given, Y)
    cells, sums = samples * channels, _word(given, SCRATCH)
    rows.moments(zero, x, xn, xc, channels, size, None, None, 0, sums, sums + 8 * cells, sums + 16 * cells, 0, cells)
    _settle(zero, given)
    center, scale, shift, level = _map_of(zero, given)
    rows.affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, shift, kind, level, channels, 0, cells)


@sequential
def columns_forward(zero, kind, given):
    """y from x, where the channels of a position are adjacent."""
    (samples, channels, size), (x, xn, xs), (y, yn, ys) = _place(given, SIZES), _place(given, X), _place(given, Y)
    cells, sums = samples * channels, _word(given, SCRATCH)
    columns.moments(zero, x, xn, xs, channels, size, 1, None, None, 0, sums, sums + 8 * cells, sums + 16 * cells, 0, samples)
    _settle(zero, given)
    center, scale, shift, level = _map_of(zero, given)
    columns.affine(zero, x, xn, xs, y, yn, ys, channels, size, 1, center, scale, shift, kind, level, channels, 0, samples)


@sequential
def rows_backward(zero, kind, below, given):
    """dx from dy and x, and all other gradients; `below`, unless None, is where the sums for the level go, behind the others."""
    (samples, channels, size), (x, xn, xc) = _place(given, SIZES), _place(given, X)
    (d, dn, dc), (g, gn, gc) = _place(given, Y), _place(given, DY)
    cells, sums, (center, scale, shift, level) = samples * channels, _word(given, SCRATCH), _map_of(zero, given)
    rows.grad_sums(
        zero, g, gn, gc, x, xn, xc, channels, size, center, None, None, scale, shift, kind, level, channels, sums, sums + 8 * cells,
        below, 0, cells
    )  # fmt: skip
    _pull(zero, given)
    slope, pivot, offset = _line_of(zero, given)
    rows.grad_input(
        zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, None, None, center, shift, kind, level,
        channels, 0, cells
    )  # fmt: skip


@sequential
def columns_backward(zero, kind, below, given):
    """The same where the channels of a position are adjacent."""
    (samples, channels, size), (x, xn, xs) = _place(given, SIZES), _place(given, X)
    (d, dn, ds), (g, gn, gs) = _place(given, Y), _place(given, DY)
    cells, sums, (center, scale, shift, level) = samples * channels, _word(given, SCRATCH), _map_of(zero, given)
    columns.grad_sums(
        zero, g, gn, gs, x, xn, xs, channels, size, 1, center, None, None, scale, shift, kind, level, channels, sums, sums + 8 * cells,
        below, 0, samples
    )  # fmt: skip
    _pull(zero, given)
    slope, pivot, offset = _line_of(zero, given)
    columns.grad_input(
        zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, 1, scale, slope, pivot, offset, None, None, center, shift, kind, level,
        channels, 0, samples
    )  # fmt: skip

"""The loops over several cores. numba knows a function by its source, so each is written out; their arguments are those of the loop."""

from numba import njit, prange

from normsmith.kernels.cpu import columns, rows, shape
from normsmith.kernels.cpu.memory import OPTIONS

parallel = njit(parallel=True, **OPTIONS)

# fmt: off


@parallel
def rows_moments(zero, x, xn, xc, channels, size, low, high, step, count, mean, var, cells, chunks):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        rows.moments(zero, x, xn, xc, channels, size, low, high, step, count, mean, var, begin, end)


@parallel
def rows_affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, bias, kind, level, step, cells, chunks):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        rows.affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, bias, kind, level, step, begin, end)


@parallel
def rows_grad_sums(
    zero, g, gn, gc, x, xn, xc, channels, size, center, low, high, scale, bias, kind, level, step, total,
    product, below, cells, chunks
):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        rows.grad_sums(
            zero, g, gn, gc, x, xn, xc, channels, size, center, low, high, scale, bias, kind, level, step, total,
            product, below, begin, end
        )


@parallel
def rows_grad_input(
    zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, low, high, center,
    bias, kind, level, step, cells, chunks
):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        rows.grad_input(
            zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, low, high, center,
            bias, kind, level, step, begin, end
        )


@parallel
def columns_moments(zero, x, xn, xs, channels, size, parts, low, high, step, count, mean, var, cells, chunks):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        columns.moments(zero, x, xn, xs, channels, size, parts, low, high, step, count, mean, var, begin, end)


@parallel
def columns_affine(zero, x, xn, xs, y, yn, ys, channels, size, parts, center, scale, bias, kind, level, step, cells, chunks):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        columns.affine(zero, x, xn, xs, y, yn, ys, channels, size, parts, center, scale, bias, kind, level, step, begin, end)


@parallel
def columns_grad_sums(
    zero, g, gn, gs, x, xn, xs, channels, size, parts, center, low, high, scale, bias, kind, level, step, total,
    product, below, cells, chunks
):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        columns.grad_sums(
            zero, g, gn, gs, x, xn, xs, channels, size, parts, center, low, high, scale, bias, kind, level, step, total,
            product, below, begin, end
        )


@parallel
def columns_grad_input(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, scale, slope, pivot, offset, low, high, center,
    bias, kind, level, step, cells, chunks
):
    for k in prange(chunks):
        begin, end = cells * k // chunks, cells * (k + 1) // chunks
        columns.grad_input(
            zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, scale, slope, pivot, offset, low, high, center,
            bias, kind, level, step, begin, end
        )


@parallel
def shape_describe(
    zero, word, x, xn, xc, xs, samples, channels, size, tile, center, inverse, side, number, tallies, facts,
    lows, highs, tiles, chunks
):
    for k in prange(chunks):
        begin, end = tiles * k // chunks, tiles * (k + 1) // chunks
        shape.describe(
            zero, word, x, xn, xc, xs, samples, channels, size, tile, center, inverse, side, number, tallies,
            facts, lows, highs, begin, end
        )

"""x"""

from numba import njit, prange

from normsmith.kernels.cpu import columns, rows
from normsmith.kernels.cpu.memory import OPTIONS

parallel = njit(parallel=True, **OPTIONS)


@parallel
def rows_moments(zero, x, xn, xc, channels, size, low, high, step, count, mean, var, cells, chunks):
    for k in prange(chunks):
        rows.moments(
            zero, x, xn, xc, channels, size, low, high, step, count, mean, var, cells * k // chunks, cells * (k + 1) // chunks
        )


@parallel
def rows_affine(zero, x, xn, xc, y, yn, yc, channels, size, center, scale, bias, step, cells, chunks):
    for k in prange(chunks):
        rows.affine(
            zero,
            x,
            xn,
            xc,
            y,
            yn,
            yc,
            channels,
            size,
            center,
            scale,
            bias,
            step,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def rows_grad_sums(zero, g, gn, gc, x, xn, xc, channels, size, center, low, high, step, total, product, cells, chunks):
    for k in prange(chunks):
        rows.grad_sums(
            zero,
            g,
            gn,
            gc,
            x,
            xn,
            xc,
            channels,
            size,
            center,
            low,
            high,
            step,
            total,
            product,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def rows_grad_input(
    zero, g, gn, gc, x, xn, xc, d, dn, dc, channels, size, scale, slope, pivot, offset, low, high, step, cells, chunks
):
    for k in prange(chunks):
        rows.grad_input(
            zero,
            g,
            gn,
            gc,
            x,
            xn,
            xc,
            d,
            dn,
            dc,
            channels,
            size,
            scale,
            slope,
            pivot,
            offset,
            low,
            high,
            step,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def columns_moments(zero, x, xn, xs, channels, size, parts, low, high, step, count, mean, var, cells, chunks):
    for k in prange(chunks):
        columns.moments(
            zero,
            x,
            xn,
            xs,
            channels,
            size,
            parts,
            low,
            high,
            step,
            count,
            mean,
            var,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def columns_affine(zero, x, xn, xs, y, yn, ys, channels, size, parts, center, scale, bias, step, cells, chunks):
    for k in prange(chunks):
        columns.affine(
            zero,
            x,
            xn,
            xs,
            y,
            yn,
            ys,
            channels,
            size,
            parts,
            center,
            scale,
            bias,
            step,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def columns_grad_sums(
    zero, g, gn, gs, x, xn, xs, channels, size, parts, center, low, high, step, total, product, cells, chunks
):
    for k in prange(chunks):
        columns.grad_sums(
            zero,
            g,
            gn,
            gs,
            x,
            xn,
            xs,
            channels,
            size,
            parts,
            center,
            low,
            high,
            step,
            total,
            product,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )


@parallel
def columns_grad_input(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, scale, slope, pivot, offset, low, high, step, cells, chunks
):
    for k in prange(chunks):
        columns.grad_input(
            zero,
            g,
            gn,
            gs,
            x,
            xn,
            xs,
            d,
            dn,
            ds,
            channels,
            size,
            parts,
            scale,
            slope,
            pivot,
            offset,
            low,
            high,
            step,
            cells * k // chunks,
            cells * (k + 1) // chunks,
        )

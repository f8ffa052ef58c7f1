"""The loops of `mixture_loops.py` over several cores; their arguments are those of the loop."""

from numba import njit, prange

from normsmith.kernels.cpu import mixture_loops as loops
from normsmith.kernels.cpu.memory import OPTIONS

parallel = njit(parallel=True, **OPTIONS)

# fmt: off


@parallel
def joint_shares(
    zero, x, xn, xc, xs, channels, size, table, number, positions, runs, masked, given, measures, sums, tasks, chunks
):
    for j in prange(chunks):
        begin, end = tasks * j // chunks, tasks * (j + 1) // chunks
        loops.joint_shares(
            zero, x, xn, xc, xs, channels, size, table, number, positions, runs, masked, given, measures, sums, begin, end
        )


@parallel
def moments(zero, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, tasks, chunks):
    for j in prange(chunks):
        begin, end = tasks * j // chunks, tasks * (j + 1) // chunks
        loops.moments(
            zero, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, begin, end
        )


@parallel
def affine(
    zero, x, xn, xc, xs, y, yn, yc, ys, channels, size, table, bias, number, positions, tile, runs, given, tasks, chunks
):
    for j in prange(chunks):
        begin, end = tasks * j // chunks, tasks * (j + 1) // chunks
        loops.affine(
            zero, x, xn, xc, xs, y, yn, yc, ys, channels, size, table, bias, number, positions, tile, runs, given, begin, end
        )


@parallel
def grad_sums(
    zero, g, gn, gc, gs, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, tasks, chunks
):
    for j in prange(chunks):
        begin, end = tasks * j // chunks, tasks * (j + 1) // chunks
        loops.grad_sums(
            zero, g, gn, gc, gs, x, xn, xc, xs, channels, size, table, number, positions, tile, runs, given, masked, sums, begin,
            end
        )


@parallel
def grad_input(
    zero, g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, channels, size, table, number, positions, tile, runs, given, masked,
    through, sums, tasks, chunks
):
    for j in prange(chunks):
        begin, end = tasks * j // chunks, tasks * (j + 1) // chunks
        loops.grad_input(
            zero, g, gn, gc, gs, x, xn, xc, xs, d, dn, dc, ds, channels, size, table, number, positions, tile, runs, given, masked,
            through, sums, begin, end
        )

"""The loops that standardize at once, over several cores: samples shared out whole, or, where they are few, in runs."""

import numpy as np
from numba import prange

from normsmith.kernels.cpu import whole_columns as columns
from normsmith.kernels.cpu.memory import fill
from normsmith.kernels.cpu.parallel import parallel

# fmt: off


@parallel
def columns_standardize(
    zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, bias, found, eps, centered, chunks
):
    for k in prange(chunks):
        begin, end = samples * k // chunks, samples * (k + 1) // chunks
        columns.standardize(
            zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, bias, found, eps, centered, begin, end
        )


@parallel
def columns_standardize_runs(
    zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, bias, found, eps, centered, chunks
):
    runs = samples * parts
    room = np.empty(2 * channels * runs)
    for k in prange(chunks):
        begin, end = runs * k // chunks, runs * (k + 1) // chunks
        scratch = np.full(3 * channels, zero)
        columns.measure_runs(
            zero, x, xn, xs, channels, size, parts, room, 2 * channels * begin, scratch, begin, end
        )
    for n in range(samples):
        slot = 2 * channels * parts * n
        columns.settle(zero, channels, size, parts, sets, samples, room, slot, found, eps, centered, n)
    for k in prange(chunks):
        begin, end = runs * k // chunks, runs * (k + 1) // chunks
        scratch = np.full(3 * channels, zero)
        columns.offsets(zero, bias, scratch)
        columns.map_runs(
            zero, x, xn, xs, y, yn, ys, channels, size, parts, sets, samples, weight, found, centered, scratch, begin, end
        )


@parallel
def columns_unstandardize(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, centered, out, tasks, chunks
):
    lines, sums = np.empty(2 * samples * sets, np.float64), np.empty(2 * channels * tasks)
    for k in prange(chunks):
        begin, end = tasks * k // chunks, tasks * (k + 1) // chunks
        columns.unstandardize(
            zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered, sums,
            tasks, begin, end
        )
    columns.merge(zero, channels, sums, tasks, out)


@parallel
def columns_unstandardize_runs(
    zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, centered, out, tasks, chunks
):
    runs = samples * parts
    room, lines, sums = np.empty(2 * channels * runs), np.empty(2 * samples * sets), np.empty(2 * channels)
    for k in prange(chunks):
        begin, end = runs * k // chunks, runs * (k + 1) // chunks
        scratch = np.full(3 * channels, zero)
        columns.gather_runs(
            zero, g, gn, gs, x, xn, xs, channels, size, parts, sets, found, centered, room, 2 * channels * begin, scratch,
            begin, end
        )
    fill(sums, 0.0)
    for n in range(samples):
        slot = 2 * channels * parts * n
        columns.pull(zero, channels, size, parts, sets, samples, weight, room, slot, found, lines, centered, sums, 0, n)
    columns.merge(zero, channels, sums, 1, out)
    for k in prange(chunks):
        begin, end = runs * k // chunks, runs * (k + 1) // chunks
        scratch = np.full(4 * channels, zero)
        columns.map_runs_back(
            zero, g, gn, gs, x, xn, xs, d, dn, ds, channels, size, parts, sets, samples, weight, found, lines, centered,
            scratch, begin, end
        )

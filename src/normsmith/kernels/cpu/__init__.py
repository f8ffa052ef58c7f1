"""The operations for CPU tensors in float32 and float64: loops compiled by numba on first use and then cached on disk.

    memory.py    addresses instead of arrays
    rows.py, columns.py, merge.py    the loops, sequential, one file a layout
    bend.py      activations, for both
    parallel.py  the same over several cores
    threads.py   how many cores, and the traps of thread layers
    launch.py    from cut tensors to loops
    whole.py, whole_columns.py, whole_rows.py, whole_sets.py, stages.py    a sample standardized and mapped while it is in the cache
    checked.py   torch's group norm in columns, believed where it may be
    blend.py     on statistics: the derivative of a blend, a moving average
    shape.py, shape_blocks.py, describe.py    one pass more, for `doctor`: power sums to the fourth, extremes and histograms, both layouts
    mixture.py, mixture_blocks.py, mixture_loops.py, mixture_parallel.py, exponential.py    the operations of mixtures, both layouts
    cache.py     where compiled loops are kept

Importing this package imports numba, and a first call makes numba import its other half. The garbage collector would double the
time of both by walking over everything torch has already made, so it waits.
"""

import gc

import numpy

_was_enabled = gc.isenabled()
gc.disable()
try:
    from normsmith.kernels.cpu import cache, threads

    with cache.in_own_folder():
        from normsmith.kernels.cpu import memory
        from normsmith.kernels.cpu.launch import (
            cell_affine,
            cell_grad_input,
            cell_grad_sums,
            cell_moments,
            move_average,
            weigh,
        )
        from normsmith.kernels.cpu.whole import cells_later
        from normsmith.kernels.reference import lines, pool, share, standardize, unstandardize, weighted_sum

    threads.start()
    memory.fill(numpy.zeros(1), 0.0)
finally:
    if _was_enabled:
        gc.enable()

__all__ = [
    "cell_affine",
    "cell_grad_input",
    "cell_grad_sums",
    "cell_moments",
    "cells_later",
    "lines",
    "move_average",
    "pool",
    "share",
]
__all__ += ["standardize", "unstandardize", "weigh", "weighted_sum"]

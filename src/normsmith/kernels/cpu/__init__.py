"""The four operations for CPU tensors in float32 and float64: loops compiled by numba on first use and then cached on disk.

    memory.py    addresses instead of arrays
    rows.py, columns.py, merge.py    the loops, sequential, one file a layout
    parallel.py  the same over several cores
    threads.py   how many cores, and the traps of thread layers
    launch.py    from cut tensors to loops

Importing this package imports numba, which takes most of the time; the garbage collector would double it by walking over
everything torch has already made, so it waits.
"""

import gc

_was_enabled = gc.isenabled()
gc.disable()
try:
    from normsmith.kernels.cpu import threads
    from normsmith.kernels.cpu.launch import cell_affine, cell_grad_input, cell_grad_sums, cell_moments

    threads.start()
finally:
    if _was_enabled:
        gc.enable()

__all__ = ["cell_affine", "cell_grad_input", "cell_grad_sums", "cell_moments"]

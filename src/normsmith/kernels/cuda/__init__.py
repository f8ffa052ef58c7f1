"""The operations in Triton, for NVIDIA GPUs: float16, bfloat16, float32 and float64, with statistics of at least float32.

    tiles.py     what every kernel does with its piece of a tensor
    reduce.py    the kernels that read x: moments and sums, and the merge of what several programs found
    apply.py     the kernels that write a tensor of the size of x
    geometry.py  how a tensor is cut into tiles, and the tiles shared out to programs
    launch.py    from cut tensors to kernels
    chip.py      the kernels that read x once, and whole.py from untaken moments to them
    statistics.py  the kernels for statistics alone
    small.py     from statistics to these kernels
    mixture.py   the operations of mixtures; their kernels in mixture_kernels.py

No kernel uses atomics: what several programs find of the same cells is merged by one more kernel, in a fixed order, and a result
repeats to the bit. How the work is shared out follows from the shape alone. Importing this package imports Triton.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, the same kernels run on CPU tensors, slowly: that is how they
are tested where there is no GPU.
"""

from normsmith.kernels.cuda.launch import cell_affine, cell_grad_input, cell_grad_sums
from normsmith.kernels.cuda.small import (
    cell_moments,
    lines,
    move_average,
    pool,
    share,
    standardize,
    unstandardize,
    weigh,
    weighted_sum,
)
from normsmith.kernels.cuda.whole import cells_later

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

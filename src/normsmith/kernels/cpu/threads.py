"""How many cores a call may use, and the traps of numba's thread layers.

- The `omp` layer shares torch's own pool of threads; any other runs a second pool against it, which inside a network costs more
  than the kernels gain. So `omp` is asked for first, then `tbb`; on `workqueue` a warning says so once.
- The first launch of `omp` overwrites `torch.set_num_threads`: it is read before and restored after.
- After `fork` (DataLoader workers) an OpenMP launch ends the child: there the loops run sequentially.
- `workqueue` aborts when two Python threads launch at once: it gets a lock.
"""

import contextlib
import os
import threading
import warnings
from contextlib import AbstractContextManager
from typing import Any

import numba
import torch

config: Any = numba.config
GRAIN = 16384  # elements a core should get at least: a launch costs a few microseconds

_in_forked_child = False
_turn: AbstractContextManager[object] = contextlib.nullcontext()


def _after_fork_in_child() -> None:
    global _in_forked_child
    _in_forked_child = True


def start() -> None:
    """Choose numba's thread layer and launch it once; called when the cpu backend is first used."""
    global _turn
    torch_threads = torch.get_num_threads()
    if config.THREADING_LAYER == "default":
        config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    os.register_at_fork(after_in_child=_after_fork_in_child)
    numba.set_num_threads(min(torch_threads, config.NUMBA_NUM_THREADS))  # launches
    torch.set_num_threads(torch_threads)
    if numba.threading_layer() == "workqueue":  # type: ignore[attr-defined]
        _turn = threading.Lock()
        warnings.warn(
            "normsmith expected OpenMP for its CPU kernels, found only numba's workqueue, whose threads compete with torch's; "
            "install libgomp (Linux), libomp (macOS) or the tbb package",
            stacklevel=2,
        )


def available(elements: int) -> int:
    """The number of cores for a call over that many elements; 0 means the sequential form.

    The form depends on the size alone, not on the number of threads: compiled twice, the same loop may round differently.
    """
    if _in_forked_child or elements < 2 * GRAIN:
        return 0
    wanted = min(torch.get_num_threads(), int(config.NUMBA_NUM_THREADS), elements // GRAIN)
    if numba.get_num_threads() != wanted:
        numba.set_num_threads(wanted)
    return wanted


def turn() -> AbstractContextManager[object]:
    """To be held during a launch: a lock where the thread layer is not safe to use from several Python threads."""
    return _turn

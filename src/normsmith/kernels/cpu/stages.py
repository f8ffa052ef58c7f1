"""Loops in stages, over several cores: the stages of one item follow each other on one core, while what they share is in its cache.

A stage is a C function (zero, arguments, begin, end, core): what it works on lies at the address `arguments`, as doubles, which hold
addresses and sizes exactly; it treats the runs `begin` to `end` of one item. Called by its address, it is compiled once, by itself: neither
into what calls it, nor for one core and for several, so that both find the same to the bit.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cfunc, njit, prange, typeof, types

from normsmith.kernels.cpu import cache, threads
from normsmith.kernels.cpu.memory import OPTIONS, call, sequential, view

_OPTIONS: Any = {key: value for key, value in OPTIONS.items() if key not in {"nogil", "no_cfunc_wrapper"}}
INDEX, ONE = np.int64(0), np.int64(1)
_building = threading.Lock()  # of tables, which are at an address, and of numba's one setting of where it keeps things


class Stage:
    """A function to be compiled when it is first asked for, for the type of its `zero`."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._compiled: dict[type, Any] = {}

    def address(self, zero: Any) -> int:
        """Of the compiled function."""
        kind = type(zero)
        if kind not in self._compiled:
            whole = types.int64
            self._compiled[kind] = cfunc(types.void(typeof(zero), whole, whole, whole, whole), **_OPTIONS)(self.function)
        return int(self._compiled[kind].address)


class Chain:
    """Stages that follow each other."""

    def __init__(self, *stages: Stage) -> None:
        self.stages = stages
        self._tables: dict[type, tuple[Any, int]] = {}  # of addresses, and where it is

    def run(self, zero: Any, arguments: int, items: int, length: int, tasks: int, cores: int) -> None:
        """For every item, which is so many runs; `tasks` are items in order, each on one core."""
        kind = type(zero)
        if kind not in self._tables:
            with _building, cache.uncollected(), cache.in_own_folder():
                found = np.array([stage.address(zero) for stage in self.stages])
                self._tables.setdefault(kind, (found, found.ctypes.data))
        where = (self._tables[kind][1], len(self.stages), zero, arguments, items, length)
        if cores == 0:
            follow(*where, 0, tasks, tasks, 0)
            return
        with threads.turn():
            share(*where, tasks, cores)


@sequential
def follow(functions, number, zero, arguments, items, length, begin, end, tasks, core):
    """Every stage of every item of these tasks."""
    for item in range(items * begin // tasks, items * end // tasks):
        for i in range(number):
            call(view(functions, INDEX, i, ONE)[0], zero, arguments, item * length, (item + 1) * length, core)


@njit(parallel=True, **OPTIONS)
def share(functions, number, zero, arguments, items, length, tasks, cores):
    for worker in prange(cores):
        core = np.int64(worker)  # as everywhere else: it is unsigned here, for which all would be compiled once more
        begin, end = tasks * core // cores, tasks * (core + 1) // cores
        follow(functions, number, zero, arguments, items, length, begin, end, tasks, core)

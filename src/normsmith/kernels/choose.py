"""Which backend does the work: decided ahead from device, type, layout and size, never from values.

`auto` takes torch's own operator where one exists and measured faster (`OURS_WIN_FROM`), else our kernels, else the reference.
`NORMSMITH_BACKEND` or `with normsmith.backend("reference"):` force one of:

- `torch`      torch's own operator for the methods that have one, otherwise as `auto`
- `cpu`        the numba kernels; an error for tensors they cannot take
- `reference`  plain torch

A further backend is one line in `_LOADERS`.
"""

import contextlib
import importlib
import math
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from typing import cast

import torch
from torch import Tensor

from normsmith.cells import cut, layout
from normsmith.errors import BackendError, OptionError
from normsmith.kernels import Backend
from normsmith.surroundings import must_stay_plain

VARIABLE = "NORMSMITH_BACKEND"
_LOADERS = {"cpu": "normsmith.kernels.cpu", "reference": "normsmith.kernels.reference"}
NAMES = ("auto", "torch", *_LOADERS)


def _checked(name: str, origin: str) -> str:
    if name not in NAMES:
        raise OptionError(f"{origin} expects one of {', '.join(NAMES)}: got {name!r}")
    return name


_FROM_START = _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
_forced: ContextVar[str] = ContextVar("normsmith_backend", default=_FROM_START)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block: "auto", "torch", "cpu" or "reference"."""
    token = _forced.set(_checked(name, "backend()"))
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _load(name: str) -> Backend:
    return cast(Backend, importlib.import_module(_LOADERS[name]))


def kernels_take(x: Tensor) -> bool:
    """Whether the cpu kernels can work on this tensor."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() > 0 and not x.is_neg()


def backend_for(x: Tensor) -> Backend:
    """The four operations for this tensor."""
    forced = _forced.get()
    if forced == "cpu" and not kernels_take(x) and x.numel() > 0:
        raise BackendError(
            f"the cpu backend expects float32 or float64 tensors on the CPU: got {x.dtype} on {x.device}"
            f'{", with the negative bit set" if x.is_neg() else ""}; leave the choice to normsmith with backend("auto")'
        )
    return _load("cpu" if forced != "reference" and kernels_take(x) else "reference")


# From how many elements on our kernels win over torch's own operator, forward and backward, in rows and in columns; below it torch does
# the work. Measured on 2 cores, as everything in docs/benchmark.md. torch's evaluation of batch norm runs at the speed of a copy, and
# its group norm in rows takes moments and applies them while a group is still in the cache: there is nothing to win.
NEVER = math.inf
OURS_WIN_FROM: dict[str, tuple[float, float]] = {
    "batch": (350_000, NEVER),
    "batch_eval": (NEVER, NEVER),
    "instance": (NEVER, 300_000),
    "group": (NEVER, 400_000),
    "layer": (NEVER, 400_000),
    "rms": (400_000, 300_000),
    "position": (200_000, NEVER),
    "position_rms": (150_000, 500_000),
}


def prefer_torch(operator: str, x: Tensor) -> bool:
    """Whether a method that torch has too should be torch's operator for this tensor."""
    if torch.compiler.is_compiling():
        return True
    forced = _forced.get()
    if forced != "auto":
        return forced == "torch"
    in_rows, in_columns = OURS_WIN_FROM[operator]
    elements = x.numel()
    if elements < min(in_rows, in_columns) or (elements < in_rows and x.is_contiguous() and x.dim() > 2):
        return True
    if not kernels_take(x) or must_stay_plain((x,)):
        return True
    return elements < (in_columns if _in_columns(x) else in_rows)


def _in_columns(x: Tensor) -> bool:
    """Whether the layout of the cut tensor is columns; told from the memory format where it can be, as a view costs more."""
    if x.dim() > 2 and x.shape[1] > 1 and x.numel() > x.shape[0] * x.shape[1]:
        if x.is_contiguous():
            return False
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return True
    return layout(cut(x)) == "columns"

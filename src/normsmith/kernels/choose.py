"""Which backend does the work: decided ahead from device, type, layout and size, never from values.

One exception: torch's group norm in columns is done over by our kernels where what it found shows that it lost precision.

`auto` takes torch's own operator where one exists and measured faster (`OURS_WIN_FROM`), else our kernels, else the reference.
`NORMSMITH_BACKEND` or `with normsmith.backend("reference"):` force one of:

- `torch`      torch's own operator for the methods that have one, otherwise as `auto`
- `cpu`        the numba kernels; an error for tensors they cannot take
- `cuda`       the Triton kernels; an error for tensors they cannot take. On CPU tensors too with TRITON_INTERPRET=1, slowly, to test them
- `reference`  plain torch

A further backend is one line in `_LOADERS` and one in `_TAKERS`; one in `_MIXTURES` too, if it has the operations of mixtures.
"""

import contextlib
import importlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from normsmith.cells import cut, layout
from normsmith.errors import BackendError, DependencyError, OptionError
from normsmith.kernels import Backend
from normsmith.kernels.mixtures import MixtureBackend
from normsmith.surroundings import must_stay_plain

VARIABLE = "NORMSMITH_BACKEND"
_LOADERS = {"cpu": "normsmith.kernels.cpu", "cuda": "normsmith.kernels.cuda", "reference": "normsmith.kernels.reference"}
_MIXTURES = {"cpu": "normsmith.kernels.cpu.mixture", "cuda": "normsmith.kernels.cuda.mixture"}
NAMES = ("auto", "torch", *_LOADERS)


def _checked(name: str, origin: str) -> str:
    if name not in NAMES:
        raise OptionError(f"{origin} expects one of {', '.join(NAMES)}: got {name!r}")
    return name


_FROM_START = _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)
_forced: ContextVar[str] = ContextVar("normsmith_backend", default=_FROM_START)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block: "auto", "torch", "cpu", "cuda" or "reference"."""
    token = _forced.set(_checked(name, "backend()"))
    try:
        yield
    finally:
        _forced.reset(token)


@cache
def _load(room: str) -> Any:
    return importlib.import_module(room)


_SINGLE_AND_DOUBLE = (torch.float32, torch.float64)


def kernels_take(x: Tensor) -> bool:
    """Whether the cpu kernels can work on this tensor."""
    return x.is_cpu and x.dtype in _SINGLE_AND_DOUBLE and x.numel() > 0 and not x.is_neg()


TRITON = (3, 4)  # the oldest whose interpreter and compiler take the kernels
_WIDTHS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: PLC0415  (only by those with a GPU, on first use)
    except ImportError:
        return False
    return tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) >= TRITON


@cache
def _compiles_for(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0) and _has_triton()


def cuda_kernels_take(x: Tensor) -> bool:
    """Whether the cuda kernels can work on this tensor, on its GPU or through Triton's interpreter."""
    if x.dtype not in _WIDTHS or x.numel() == 0 or x.is_neg():
        return False
    if x.device.type == "cuda":
        return _compiles_for(x.device)
    return x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and _has_triton()


_TAKERS: dict[str, Callable[[Tensor], bool]] = {"cpu": kernels_take, "cuda": cuda_kernels_take}


def _refuse(forced: str, x: Tensor) -> None:
    """Raise for a tensor that a forced backend cannot take."""
    expected = "float32 or float64 tensors on the CPU"
    if forced == "cuda":
        if not _has_triton():
            raise DependencyError("the cuda backend expects Triton 3.4 or newer: pip install 'normsmith[cuda]'")
        expected = "float16, bfloat16, float32 or float64 tensors on an NVIDIA GPU of compute capability 8.0 or newer"
    raise BackendError(
        f"the {forced} backend expects {expected}: got {x.dtype} on {x.device}"
        f'{", with the negative bit set" if x.is_neg() else ""}; leave the choice to normsmith with backend("auto")'
    )


def backend_for(x: Tensor) -> Backend:
    """The four operations for this tensor."""
    return cast(Backend, _load(_LOADERS[_chosen(x)]))


def mixtures_for(x: Tensor) -> MixtureBackend:
    """The operations of mixtures for this tensor."""
    return cast(MixtureBackend, _load(_MIXTURES.get(_chosen(x), "normsmith.kernels.mixtures_reference")))


def _chosen(x: Tensor) -> str:
    forced = _forced.get()
    if forced == "reference" or x.numel() == 0:
        return "reference"
    if forced in _TAKERS:
        if not _TAKERS[forced](x):
            _refuse(forced, x)
        return forced
    return "cpu" if kernels_take(x) else "cuda" if x.is_cuda and cuda_kernels_take(x) else "reference"


# From how many elements on our kernels win over torch's own operator, forward and backward, in rows and in columns; below it torch does
# the work. Measured on 2 cores, as everything in docs/benchmark.md. torch's evaluation of batch norm runs at the speed of a copy, and
# its group norm in rows takes moments and applies them while a group is still in the cache: there is nothing to win. On a GPU nothing
# has been measured: there torch's operator does the work wherever there is one, and our kernels do what torch has not.
NEVER = math.inf
LARGER, LARGE = 65_000, 1_000_000  # than small tensors are
OURS_WIN_FROM: dict[str, tuple[float, float]] = {
    "batch": (350_000, NEVER),
    "batch_eval": (NEVER, NEVER),
    "group": (NEVER, LARGER),  # layer and instance norm too; of those in columns that `checked_in_columns` does not take
    "group_of_tokens": (NEVER, NEVER),
    "rms": (30_000, 30_000),
    "rms_eval": (200_000, 250_000),  # and tokens, for which torch has one operator
    "position": (200_000, NEVER),
    "position_rms": (150_000, 500_000),
}


# torch's group norm in columns, checked afterwards (`kernels/cpu/checked.py`), is faster than ours from so many channels in a group on:
# many where its loops follow groups, as they do for short cells, few where they follow positions. Measured like the above.
LONG = 1024  # positions
MEMBERS_OF_LONG = (
    1,
    8,
)  # without gradients, and with them: the backward of many positions of few channels takes four times ours
MEMBERS_OF_SHORT = (2, 8, 64)  # in small tensors, in larger ones, and in large ones
CheckedGroupNorm = Callable[[Tensor, int, Tensor | None, Tensor | None, float], Tensor | None]


# The same where an activation follows: torch's operator then pays for two passes more.
WITH_ACTIVATION = OURS_WIN_FROM | {
    "batch": (350_000, 3_000_000),
    "batch_eval": (400_000, 400_000),
    "group": (3_000_000, 400_000),
}


def prefer_torch(operator: str, x: Tensor, *, activated: bool = False) -> bool:
    """Whether a method that torch has too should be torch's operator for this tensor, and the activation, if any, another."""
    if torch.compiler.is_compiling():
        return True
    forced = _forced.get()
    if forced != "auto":
        return forced == "torch"
    in_rows, in_columns = (WITH_ACTIVATION if activated else OURS_WIN_FROM)[operator]
    elements = x.numel()
    if elements < min(in_rows, in_columns) or (elements < in_rows and x.is_contiguous() and x.dim() > 2):
        return True
    if not kernels_take(x) or must_stay_plain((x,)):
        return True
    return elements < (in_columns if _in_columns(x) else in_rows)


def checked_in_columns(x: Tensor, groups: int, *, activated: bool = False) -> CheckedGroupNorm | None:
    """torch's group norm for tensors whose channels are last in memory, where it is faster than ours; None where it is not."""
    if _forced.get() not in {"auto", "torch"} or not x.is_cpu or x.numel() == 0 or must_stay_plain((x,)):
        return None
    elements, channels = x.numel(), x.shape[1]
    if elements // (x.shape[0] * channels) >= LONG:
        least = MEMBERS_OF_LONG[torch.is_grad_enabled()]
    else:
        least = MEMBERS_OF_SHORT[(elements >= LARGER) + (elements >= LARGE)]
    if activated and elements >= WITH_ACTIVATION["group"][1]:
        return None
    if channels // groups < least or x.dtype not in _WIDTHS or x.is_neg() or not _fills_columns(x):
        return None
    found: CheckedGroupNorm = _load("normsmith.kernels.cpu.checked").group_norm
    return found


def _fills_columns(x: Tensor) -> bool:
    """Whether channels are last in memory, and nothing lies between."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.dim() > 2 and x.movedim(1, -1).is_contiguous()


def _in_columns(x: Tensor) -> bool:
    """Whether the layout of the cut tensor is columns; told from the memory format where it can be, as a view costs more."""
    if x.dim() > 2 and x.shape[1] > 1 and x.numel() > x.shape[0] * x.shape[1]:
        if x.is_contiguous():
            return False
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return True
    return layout(cut(x)) == "columns"

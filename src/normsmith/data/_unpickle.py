"""Pickles of arrays and plain values, read without running anything that they name.

Whatever a pickle asks for by name is looked up in a short list, and none of these is what the name says: arrays and types become records
of their parts, and only `plain` makes arrays of those. A pickle that names anything else is refused before it is called.
"""

import io
import pickle
from typing import Any, Literal

import numpy as np

from normsmith.errors import InputError

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")


class _Type:
    """The parts of a dtype."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.code = f">{self.code}"


class _Array:
    """The parts of an array."""

    shape: tuple[int, ...] = ()
    kind: Any = None
    data: Any = None
    order: Literal["C", "F"] = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.kind, fortran, self.data = state
        self.order = "F" if fortran else "C"

    @classmethod
    def empty(cls, *_: object) -> "_Array":
        """As pickles before protocol 5 begin an array."""
        return cls()

    @classmethod
    def filled(cls, data: Any, kind: Any, shape: Any, order: Any) -> "_Array":
        """As protocol 5 has one."""
        array = cls()
        array.data, array.kind, array.shape, array.order = data, kind, shape, order
        return array


class _Text:
    """Bytes, which protocols before 3 hold as text. A bound method: unlike a function, a pickle cannot set anything on it."""

    @classmethod
    def encode(cls, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"an encoding {encoding!r}")
        return text.encode("latin1")


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _CORES and name in {"_reconstruct", "_frombuffer"}:
            return _Array.empty if name == "_reconstruct" else _Array.filled
        found = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): _Text.encode}.get(
            (module, name)
        )
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not read")
        return found


def loads(data: bytes, where: str) -> Any:
    """The value of a pickle of numbers, strings, lists, dicts and arrays; text of Python 2 is read as latin1."""
    try:
        return plain(_Restricted(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a broken pickle fails in any way
        line = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{where} is expected to be a whole pickle of arrays and plain values: got {line}; fetch it again"
        ) from error


def plain(value: Any) -> Any:
    """The value with arrays in place of their parts."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    if not isinstance(value, _Array):
        return value
    kind = np.dtype(value.kind.code)
    data = value.data.encode("latin1") if isinstance(value.data, str) else value.data
    return np.frombuffer(data, kind).reshape(value.shape, order=value.order)

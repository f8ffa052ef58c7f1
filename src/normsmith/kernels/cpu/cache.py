"""Where numba keeps the compiled loops: in a folder named after their source.

numba looks only at the file of the function it loads, not at the files of the functions which that one calls. A driver in
`parallel.py` would go on with the old loops of `rows.py` after a change, or after an upgrade that left `parallel.py` alone.
"""

import contextlib
import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba

from normsmith.writing import user_cache

_config: Any = numba.config


def folder() -> Path:
    """In NUMBA_CACHE_DIR, the user's cache folder, or that for temporary files; where it cannot be written, numba finds another."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    base = Path(_config.CACHE_DIR) if _config.CACHE_DIR else user_cache()
    return base / "normsmith" / source.hexdigest()[:16]


@contextlib.contextmanager
def in_own_folder() -> Iterator[None]:
    """Functions decorated inside keep their compiled form there; the setting of everybody else is left as it was."""
    before = _config.CACHE_DIR
    try:
        _config.CACHE_DIR = str(folder())
        yield
    finally:
        _config.CACHE_DIR = before


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector waits: while numba is imported or compiles it would walk over all that torch has made, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

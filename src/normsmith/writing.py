"""Files that are there whole or not at all, however a process ends."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file beside `path`, then put it there."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)  # noqa: PTH105  (atomic on every system)
    finally:
        part.unlink(missing_ok=True)


def user_cache() -> Path:
    """Where a user's caches are: XDG_CACHE_HOME, ~/.cache, or for a user without a home the folder for temporary files."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base)
    home = os.path.expanduser("~")  # noqa: PTH111  (Path.home() raises for a user without one)
    return Path(home, ".cache") if home != "~" else Path(tempfile.gettempdir(), f"normsmith-{os.getuid()}")

"""Files that are there whole or not at all, however a process ends."""

import os
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

"""One allocator setting for all contestants: keep freed pages.

By default glibc gives a freed block of tens of MB back to the kernel, and the next tensor of that size pays a page fault for every
4 KiB. Which contestant pays depends on the order of its allocations, not on its work, and it can cost more than the kernels.
"""

import os
import sys

SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483648"}
QUIET = {"KINETO_LOG_LEVEL": "99"}  # the profiler that measures memory would print a line for each run


def is_set() -> bool:
    """Whether this process was started with the settings, which glibc reads only then."""
    return all(os.environ.get(key) == value for key, value in SETTINGS.items())


def restart_with_settings() -> None:
    """Replace this process by the same command under the settings; does nothing where they stand."""
    if not is_set() and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, "-m", "normsmith", *sys.argv[1:]], {**os.environ, **SETTINGS, **QUIET})

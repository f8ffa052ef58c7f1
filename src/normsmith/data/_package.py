"""Packages that only some sets need."""

import importlib
from typing import Any

from normsmith.errors import DependencyError


def imported(module: str, package: str, owner: str, extra: str = "normsmith[data]") -> Any:
    """The module, or one sentence that says which package is wanted for what."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(f"{owner} needs {package}: got {error}; pip install '{extra}'") from None

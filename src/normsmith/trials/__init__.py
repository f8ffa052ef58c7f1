"""Normalizers trained side by side: recipe → trials → sweep, by one of several engines → a folder of results."""

import importlib.util
import sys

from normsmith.errors import DependencyError


def _is_there(package: str) -> bool:
    """Whether it can be imported, without doing so."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None


for _package in ("filelock", "polars", "pydantic", "scipy"):
    if not _is_there(_package):
        raise DependencyError(f"a comparison expects {_package}: got none; pip install 'normsmith[compare]'")

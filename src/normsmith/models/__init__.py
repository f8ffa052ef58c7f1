"""The networks of the literature, each with a `norm=` that takes anything `normsmith.make` takes; none has a kernel or a trick of its own.

Names are looked up on first use, so that a recipe can be checked against the catalog without torch.
"""

import importlib
from typing import Any

from normsmith.models.catalog import CATALOG, Entry, catalog, check_name

_ELSEWHERE = {
    "Located": "normsmith.models.tasks",
    "TASKS": "normsmith.models.tasks",
    "Task": "normsmith.models.tasks",
    "StyleDecoder": "normsmith.models.style_transfer",
    "StyleEncoder": "normsmith.models.style_transfer",
    "StyleLosses": "normsmith.models.style_transfer",
    "StyleTransfer": "normsmith.models.style_transfer",
    "load_decoder": "normsmith.models.style_weights",
    "load_encoder": "normsmith.models.style_weights",
    "match_colours": "normsmith.models._colours",
    "make": "normsmith.models._making",
    **{entry.class_name: f"normsmith.models.{entry.room}" for entry in CATALOG.values()},
}

__all__ = ["CATALOG", "Entry", "catalog", "check_name", *sorted(_ELSEWHERE)]  # noqa: PLE0604  (the networks come from the catalog)


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(
            f"module 'normsmith.models' has no attribute {name!r}; normsmith.models.catalog() lists the networks"
        )
    value = globals()[name] = getattr(importlib.import_module(_ELSEWHERE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

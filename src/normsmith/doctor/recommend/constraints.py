"""What a recommendation has to hold to."""

import ast
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from normsmith.errors import OptionError


@dataclass(frozen=True)
class Constraints:
    """`batch`: samples in a batch, None for that of the loader; `max_slowdown`: of a step, against the model as it is."""

    batch: int | None = None
    batch_independent: bool = False  # a sample's output may not depend on its mates
    max_slowdown: float | None = None


def checked(given: Mapping[str, Any] | None) -> Constraints:
    """The constraints that were written, or an error that says which there are."""
    given, known = dict(given or {}), [field.name for field in fields(Constraints)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            advice = f"did you mean {near[0]!r}?" if near else "leave it out"
            raise OptionError(f"recommend expects constraints among {', '.join(known)}: got {key!r}; {advice}")
    found = Constraints(**given)
    if found.batch is not None and (type(found.batch) is not int or found.batch < 1):
        raise OptionError(f"recommend expects the constraint batch as a positive number of samples: got {found.batch!r}")
    if type(found.batch_independent) is not bool:
        raise OptionError(
            f"recommend expects the constraint batch_independent as True or False: got {found.batch_independent!r}"
        )
    limit: Any = found.max_slowdown
    if limit is not None and (type(limit) not in (int, float) or not math.isfinite(limit) or limit <= 0):
        raise OptionError(f"recommend expects the constraint max_slowdown as a factor above 0, such as 1.5: got {limit!r}")
    return found


def parsed(text: str) -> dict[str, Any]:
    """Constraints as they are written on a command line: "batch=2,batch_independent=True"."""
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        try:
            found[key] = ast.literal_eval(value.capitalize() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise OptionError(f"constraints are expected as batch=2,max_slowdown=1.5: got {item!r} in {text!r}") from None
    return found

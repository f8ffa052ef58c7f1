"""What is wrong with a recipe, in words: each mistake with its line, and the nearest name that exists."""

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from normsmith.trials.algorithm_settings import ALGORITHMS


def explain(error: ValidationError, where: str, text: str, recipe: type[BaseModel]) -> str:
    """All mistakes, a line each."""
    lines = [_sentence(mistake, text, recipe) for mistake in _merged(error.errors(include_url=False))]
    head = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return f"{where} has {head}:\n" + "\n".join(f"  {line}" for line in lines)


def _merged(mistakes: list[Any]) -> list[Any]:
    """One mistake for each place: where several forms are allowed, every form complains."""
    places: dict[tuple[Any, ...], Any] = {}
    for mistake in mistakes:
        path = tuple(p for p in mistake["loc"] if isinstance(p, int) or (re.fullmatch(r"\w+", p) and not _is_form(p)))
        first = places.setdefault(path, {**mistake, "loc": path, "forms": mistake["loc"]})
        if first["msg"] != mistake["msg"] and mistake["msg"] not in first["msg"]:
            first["msg"] += f"; or {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
    return list(places.values())


def _is_form(part: str) -> bool:
    """Whether a step of a path names a form of a value, which users did not write."""
    return part in {"int", "float", "str", "list", "dict", *ALGORITHMS}


def _sentence(mistake: Any, text: str, recipe: type[BaseModel]) -> str:
    path = mistake["loc"]
    line = _line(text, path)
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    head = f"line {line}: " if line else ""
    if mistake["type"] == "extra_forbidden":
        known = list(_fields(recipe, mistake["forms"][:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{head}{place} is no setting; {advice}"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        return f"{head}{place} is missing"
    if mistake["type"] in {"value_error", "assertion_error"}:
        return f"{head}{place}: {message}" if place else f"{head}{message}"
    return f"{head}{place}: {message}; got {mistake['input']!r}"


def _fields(model: Any, path: tuple[Any, ...]) -> dict[str, Any]:
    """The settings of the part at `path`, in which a form may be named."""
    for step in path:
        if step in ALGORITHMS:
            model = ALGORITHMS[step]
        elif step in model.model_fields:
            annotation = model.model_fields[step].annotation
            inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
            if not inner:
                return {}
            model = inner[0]
    return dict(model.model_fields)


def _line(text: str, path: tuple[Any, ...]) -> int | None:
    """The line of a file that most likely holds the setting at `path`: the key, in the table it belongs to."""
    names = [p for p in path if isinstance(p, str)]
    if not text or not names:
        return None
    table, found, best = "", None, None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([\w.\"]+)\s*\]+", line)
        if header:
            table = header[1]
            if table == names[0] and best is None:
                best = number
        key = re.match(r"\s*([\w\"]+)\s*=", line)
        if key and key[1] == names[-1] and table == ".".join(names[:-1]):
            found = number
        elif key and key[1] == names[0] and not table:
            best = number
    return found or best

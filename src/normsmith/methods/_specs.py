"""Names with options, as recipes and commands write them: "group:num_groups=8,eps=1e-3". This file does not import torch."""

import ast
import difflib
import re
from typing import Any

from normsmith.errors import OptionError

_COMMA = re.compile(r",(?![^([]*[)\]])")  # none inside brackets
_WORDS = {"true": True, "false": False}


def written(spec: str) -> tuple[str, dict[str, Any]]:
    """The name and the options in "name:key=value,key=value"."""
    name, _, options = spec.partition(":")
    return name.strip(), options_in(options, spec)


def options_in(text: str, spec: str) -> dict[str, Any]:
    """The options in "key=value,key=value", a part of `spec`: Python's literals, or words, of which true and false are two."""
    found: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in _COMMA.split(text))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier():
            raise OptionError(f"options are expected as name:key=value,key=value: got {item!r} in {spec!r}")
        try:
            found[key] = _WORDS[value] if value in _WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def among(options: dict[str, Any], known: list[str], owner: str) -> dict[str, Any]:
    """The options, if their names are known; else an error that suggests the nearest."""
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            advice = f"did you mean {near[0]!r}?" if near else "leave it out"
            expected = f"options among {', '.join(known)}" if known else "no options"
            raise OptionError(f"{owner} expects {expected}: got {name!r}; {advice}")
    return options

"""What `normsmith convert` does: a conversion on a model made for the occasion, for its table."""

import json
import re
from typing import Any, Literal

import torch

from normsmith.errors import OptionError
from normsmith.locate import load_model
from normsmith.surgery._choice import Targets
from normsmith.surgery.convert import convert

_PART = re.compile(r"(re:[^=]+|[\w.]+)=(.+)", re.DOTALL)


def rehearse(
    spec: str, to: list[str], dry_run: bool, example: str | None, keep: Literal["weights", "function"], as_json: bool
) -> str:
    """The table, or the report as JSON."""
    targets = _targets(to)
    if not dry_run:
        argument = repr(targets)
        raise OptionError(
            "convert expects --dry-run, since a model is code and only its weights could be saved: got none; "
            f"to keep the result call ns.convert(model, {argument}) where the model is made"
        )
    verify = None if example is None else torch.randn(_shape(example), generator=torch.Generator().manual_seed(0))
    conversion = convert(load_model(spec), targets, verify=verify, keep=keep)
    return json.dumps(conversion.report, indent=2) + "\n" if as_json else str(conversion)


def _targets(to: list[str]) -> Targets:
    """One method for all, or a mapping."""
    parts = [_PART.fullmatch(item) for item in to]
    if len(to) == 1 and parts[0] is None:
        return to[0]
    found: dict[Any, Any] = {}
    for item, part in zip(to, parts, strict=True):
        if part is None:
            raise OptionError(
                f"convert expects one --to, or several as PART=METHOD: got {item!r} among {len(to)}; name the part"
            )
        found[part[1]] = None if part[2] == "none" else part[2]
    return found


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)+", text):
        raise OptionError(f"convert expects an example as a shape such as 2x3x224x224: got {text!r}")
    return tuple(int(size) for size in text.split("x"))

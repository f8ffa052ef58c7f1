"""A training under way, in one file that is whole at any time."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normsmith.errors import ResultsError
from normsmith.writing import write_whole


@dataclass
class Kept:
    """What is over, and how far the rest is."""

    path: Path
    settings: Mapping[str, Any]
    over: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each phase: its result, and what is to be told of it
    under_way: dict[str, Any] | None = None  # name, step, seconds and state of a phase

    @classmethod
    def found(cls, path: Path, settings: Mapping[str, Any]) -> tuple["Kept", str]:
        """What is in the file, or a beginning, and why it is one where there is a file."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["settings"] != settings:
                return cls(path, settings), f"{path} is of a training with other settings: starting anew"
            return cls(path, settings, state["over"], state["under way"]), ""
        except FileNotFoundError:
            return cls(path, settings), ""
        except Exception:  # noqa: BLE001  (a file of another kind fails in many ways)
            return cls(path, settings), f"{path} cannot be read: starting anew"

    def keep(self) -> None:
        """Write it."""
        state = {"settings": self.settings, "over": self.over, "under way": self.under_way}
        or_say(lambda: write_whole(self.path, lambda part: torch.save(state, part)), self.path)


def or_say(act: Callable[[], Any], path: Path) -> None:
    """Do what writes, and where that fails, say so in a sentence."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        act()
    except (OSError, RuntimeError) as error:  # torch has its own for a folder that cannot be written
        got = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ResultsError(f"{path} is expected to be a file that can be written: got {got}; choose another place") from None


def digest(encoder: nn.Module) -> str:
    """What tells the weights of one encoder from those of another."""
    found = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()

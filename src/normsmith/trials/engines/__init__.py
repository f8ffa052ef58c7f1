"""Who runs the trials: processes of this machine, a Ray cluster, or the ranks of torchrun. Each gives the same results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.trial import Word


@dataclass(frozen=True)
class Errand:
    """What every engine needs to know."""

    trials: Sequence[Trial]
    folder: Folder
    root: Path | None  # of the data
    tell: Callable[[Word], None]
    log: tuple[str, ...] = ()  # where to, beside the folder: loggers.py


class Engine(Protocol):
    """Runs trials until every one has a result."""

    ranks: int  # processes that do a trial together

    def run(self, errand: Errand) -> None:
        """Run them all."""

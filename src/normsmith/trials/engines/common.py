"""What engines share that have processes of their own."""

import os
import sys
import time
from pathlib import Path

from normsmith.trials.engines import Errand
from normsmith.trials.plan import Trial
from normsmith.trials.trial import Word, environment

TRIES = 3  # of a trial whose process died
BUSY = 1.0  # seconds until a trial that another process is at is asked for again
FULL = 74  # exit status: results cannot be written
UNREACHABLE = 69  # exit status: who is to do the work cannot be had


def import_path() -> str:
    """What makes another process import what this one would."""
    return os.pathsep.join(path or str(Path.cwd()) for path in sys.path)


def give_up(trial: Trial, errand: Errand, reason: str, said: str) -> None:
    """Record that a trial cannot be run."""
    now = time.time()
    manifest = {
        "trial": trial.to_dict(),
        "status": "crashed",
        "accuracy": None,
        "error": reason,
        "traceback": said,
        "environment": environment(),
        "started": now,
        "ended": now,
    }
    errand.folder.finish(trial.identity, manifest, [])
    errand.tell(Word(trial.identity, 0, 0, None, "crashed"))

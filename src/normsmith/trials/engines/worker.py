"""A process that runs one trial after the other: trials come as lines of JSON on standard input, words on them go out likewise.

It ends when its input does, in the middle of a trial too: then whoever started it is gone.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from normsmith.errors import ResultsError
from normsmith.trials.engines.common import FULL
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.trial import Word, run_trial


def main() -> None:
    """Work until the input ends. The argument, in JSON: the folder of results, the root of the data, where to log to."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a model prints must not get between the lines
    order = json.loads(sys.argv[1])
    folder, root = Folder(order["folder"]), None if order["root"] is None else Path(order["root"])
    errands: queue.Queue[Trial] = queue.Queue()
    threading.Thread(target=_listen, args=(errands,), daemon=True).start()
    _say(out, Word("", 0, 0, status="ready"))
    while True:
        trial = errands.get()
        try:
            status = run_trial(trial, folder, root, lambda word: _say(out, word), order["log"])
        except ResultsError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(FULL)
        _say(out, Word(trial.identity, 0, 0, status=f"ended {status}"))


def _listen(errands: "queue.Queue[Trial]") -> None:
    for line in sys.stdin:
        errands.put(Trial.from_dict(json.loads(line)))
    os._exit(0)


def _say(out: TextIO, word: Word) -> None:
    out.write(json.dumps(asdict(word)) + "\n")


if __name__ == "__main__":
    main()

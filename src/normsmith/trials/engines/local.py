"""Processes of this machine, each on cores or a GPU of its own; one that dies is replaced, and its trial goes on from the checkpoint."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from typing import IO

import torch

from normsmith.errors import OptionError, ResultsError
from normsmith.trials.engines import Errand
from normsmith.trials.engines.common import BUSY, FULL, TRIES, give_up, import_path
from normsmith.trials.plan import Trial
from normsmith.trials.trial import Word

_REMEMBERED = 4000  # characters of what a worker wrote before it died


class LocalEngine:
    """As many processes as the machine has cores for, or `workers`."""

    ranks = 1

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and (type(workers) is not int or workers < 1):
            raise OptionError(f"compare expects workers, how many processes, as a positive integer: got {workers!r}")
        self.workers = workers

    def run(self, errand: Errand) -> None:
        """Run all trials; when interrupted, stop the processes."""
        if not errand.trials:
            return
        waiting: deque[tuple[float, int, Trial]] = deque((0.0, 0, trial) for trial in errand.trials)
        places = _places(errand.trials[0], self.workers, len(errand.trials))
        hands: list[_Hand] = []
        try:
            hands += [_Hand(place, errand) for place in places]
            self._serve(waiting, hands, errand)
        finally:
            for hand in hands:
                hand.stop()

    def _serve(self, waiting: deque[tuple[float, int, Trial]], hands: list["_Hand"], errand: Errand) -> None:
        while waiting or any(hand.trial for hand in hands):
            for hand in hands:
                if hand.ready and hand.trial is None and waiting and waiting[0][0] <= time.monotonic():
                    _, tries, trial = waiting.popleft()
                    hand.give(trial, tries)
            for hand, word in _heard(hands):
                if word is None:
                    self._replace(hand, hands, waiting, errand)
                elif word.status == "ready":
                    hand.ready = True
                elif word.status.startswith("ended"):
                    assert hand.trial is not None
                    if word.status == "ended busy":
                        waiting.append((time.monotonic() + BUSY, hand.tries, hand.trial))
                    hand.trial = None
                else:
                    errand.tell(word)

    def _replace(self, hand: "_Hand", hands: list["_Hand"], waiting: deque[tuple[float, int, Trial]], errand: Errand) -> None:
        status, said = hand.stop(patience=5.0)
        if status == FULL:
            raise ResultsError(said)
        if hand.trial is None and not hand.ready:
            raise ResultsError(f"a worker is expected to start: it ended with status {status}: {said or 'it said nothing'}")
        if hand.trial is not None:
            if hand.tries + 1 < TRIES:
                waiting.appendleft((0.0, hand.tries + 1, hand.trial))
            else:
                give_up(hand.trial, errand, f"its process ended with status {status}, {TRIES} times", said)
        hands[hands.index(hand)] = _Hand(hand.place, errand)


def _places(trial: Trial, workers: int | None, trials: int) -> list[tuple[dict[str, str], set[int]]]:
    """Environment and cores of every worker."""
    threads = int(trial.option("threads"))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if str(trial.option("device")) == "cuda":
        gpus = torch.cuda.device_count()
        return [({"CUDA_VISIBLE_DEVICES": str(i % gpus)}, set()) for i in range(min(workers or gpus, trials))]
    count = min(workers or max(len(cores) // threads, 1), trials)
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    spread = [cores[(i * threads + k) % len(cores)] for i in range(count) for k in range(threads)]
    return [(own, set(spread[i * threads : (i + 1) * threads])) for i in range(count)]


class _Hand:
    """One worker process, and the trial it has in hand."""

    def __init__(self, place: tuple[dict[str, str], set[int]], errand: Errand) -> None:
        self.place, self.tries, self.ready = place, 0, False
        self.trial: Trial | None = None
        variables, cores = place
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        root = None if errand.root is None else str(errand.root)
        order = json.dumps({"folder": str(errand.folder.path), "root": root, "log": errand.log})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "normsmith.trials.engines.worker", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **variables, "PYTHONPATH": import_path()},
        )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, cores)
        self._half = b""

    def give(self, trial: Trial, tries: int) -> None:
        """Hand over a trial; if the worker is dead already, that shows when it is listened to."""
        self.trial, self.tries = trial, tries
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(trial.to_dict()).encode() + b"\n")
            self.process.stdin.flush()

    def words(self) -> Iterator[Word | None]:
        """What it has said since; None when it is dead."""
        assert self.process.stdout is not None
        said = os.read(self.process.stdout.fileno(), 1 << 16)
        if not said:
            yield None
            return
        *whole, self._half = (self._half + said).split(b"\n")
        for line in whole:
            yield Word(**json.loads(line))

    def stop(self, patience: float = 0.0) -> tuple[int, str]:
        """End it, and return how it ended and what it wrote to standard error at last."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        if self._errors.closed:
            return status, ""
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")[-_REMEMBERED:].strip()
        self._errors.close()
        return status, said


def _heard(hands: list[_Hand]) -> list[tuple[_Hand, Word | None]]:
    """What workers have said, waiting for it a while."""
    with selectors.DefaultSelector() as selector:
        for hand in hands:
            assert hand.process.stdout is not None
            selector.register(hand.process.stdout, selectors.EVENT_READ, hand)
        ready = selector.select(timeout=0.5)
    return [(key.data, word) for key, _ in ready for word in key.data.words()]

"""The process that talks to Ray: what is to be done comes as a line of JSON on standard input, lines on how it goes are the output.

It ends when its input does, and its tasks with it: then whoever started it is gone.
"""

import _thread
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from normsmith.errors import BackendError, ResultsError
from normsmith.trials.engines.common import BUSY, FULL, TRIES, UNREACHABLE
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.trial import Word, run_trial

_LISTEN = 0.2  # seconds between two looks at how tasks go
_END = 15.0  # seconds to end in
_STORE = 80 << 20  # bytes for Ray's objects where it is started here: results are in files


def main() -> None:
    """Do one errand."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints what it has to say about lost workers
    errand = json.loads(sys.stdin.readline())
    threading.Thread(target=_until_alone, daemon=True).start()
    status = 0
    try:
        _join(errand)
        _Driver(errand, lambda about, **what: _write(out, about, what)).run()
    except KeyboardInterrupt:
        status = 130
    except ResultsError as error:
        print(error, file=sys.stderr, flush=True)
        status = FULL
    except ConnectionError as error:
        print(f"engine='ray' expects a cluster at {errand['address']!r}: {_line(error)}", file=sys.stderr, flush=True)
        status = UNREACHABLE
    except BackendError as error:
        print(error, file=sys.stderr, flush=True)
        status = UNREACHABLE
    finally:
        ray.shutdown()
    sys.exit(status)


def _until_alone() -> None:
    sys.stdin.read()
    _thread.interrupt_main()
    time.sleep(_END)
    os._exit(130)  # it is in the middle of something that does not end


def _write(out: Any, about: str, what: dict[str, Any]) -> None:
    out.write(json.dumps({"about": about, **what}) + "\n")


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _join(errand: dict[str, Any]) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if errand["address"] != "local":
        ray.init(errand["address"], **common)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of a cluster of one machine
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = int(errand["trials"][0]["training"]["threads"])
    ray.init("local", num_cpus=max(cores, threads), include_dashboard=False, object_store_memory=_STORE, **common)


@dataclass
class _Task:
    trial: Trial
    tries: int = 0
    not_before: float = 0.0


class _Driver:
    """Has tasks run until every trial has a result."""

    def __init__(self, errand: dict[str, Any], say: Callable[..., None]) -> None:
        trials = [Trial.from_dict(trial) for trial in errand["trials"]]
        self.errand, self.say = errand, say
        self.waiting = deque(_Task(trial) for trial in trials)
        self.running: dict[Any, _Task] = {}
        self.ear = _make_ear()
        threads, gpus = int(trials[0].option("threads")), int(trials[0].option("device") == "cuda")
        counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.needs = {"CPU": threads, "GPU": gpus}
        self.work = ray.remote(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=0,  # lost ones are counted here: Ray tries one that needs too much memory for ever
            runtime_env={"env_vars": {**counts, "PYTHONPATH": os.environ["PYTHONPATH"]}},
        )(_work)

    def run(self) -> None:
        """Until there is nothing left."""
        self.say("start")
        self._look_for_room()
        try:
            while self.waiting or self.running:
                self._hand_out()
                self._listen()
                for done in self._done():
                    self._take(done, self.running.pop(done))
        finally:
            for task in self.running:
                ray.cancel(task, force=True)

    def _look_for_room(self) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if not any(all(node.get(what, 0) >= count for what, count in self.needs.items()) for node in nodes):
            needs = " and ".join(f"{count} {what}" for what, count in self.needs.items() if count)
            self.say("room", said=f"no node of the Ray cluster has {needs}, which a trial needs; waiting for one")

    def _hand_out(self) -> None:
        limit = self.errand["workers"] or sys.maxsize
        while self.waiting and len(self.running) < limit and self.waiting[0].not_before <= time.monotonic():
            task = self.waiting.popleft()
            order = {**{k: self.errand[k] for k in ("folder", "root", "log", "cwd")}, "identity": task.trial.identity}
            self.running[self.work.remote(task.trial.to_dict(), order, self.ear)] = task

    def _done(self) -> list[Any]:
        if not self.running:
            time.sleep(_LISTEN)
            return []
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=_LISTEN)
        return list(done)

    def _listen(self) -> None:
        under_way = {task.trial.identity for task in self.running.values()}
        with contextlib.suppress(RayError):  # without it there is no progress to be seen, that is all
            for word in ray.get(self.ear.heard.remote()):
                if word["identity"] in under_way:
                    self.say("trial", **word)

    def _take(self, done: Any, task: _Task) -> None:
        try:
            status, said = ray.get(done)
        except (RayTaskError, RuntimeEnvSetupError) as error:
            raise BackendError(
                f"engine='ray' expects every node to have normsmith, and this folder: got {_line(error)}"
            ) from error
        except RayError as error:  # of the worker or its node, not of the trial
            if task.tries + 1 < TRIES:
                self.waiting.appendleft(_Task(task.trial, task.tries + 1))
            else:
                reason = f"its worker was lost {TRIES} times: {type(error).__name__}"
                self.say("lost", identity=task.trial.identity, reason=reason, said=str(error))
            return
        if status == "full":
            raise ResultsError(said)
        if status == "other":
            raise BackendError(said)
        if status == "busy":
            self.waiting.append(_Task(task.trial, task.tries, time.monotonic() + BUSY))
        else:
            for word in said:
                self.say("trial", **word)


def _make_ear() -> Any:
    """An actor that words are told to from anywhere. Its class is local, so that its process need not import this package."""

    class Ear:
        def __init__(self) -> None:
            self.words: list[dict[str, Any]] = []

        def say(self, word: dict[str, Any]) -> None:
            self.words.append(word)

        def heard(self) -> list[dict[str, Any]]:
            words, self.words = self.words, []
            return words

    return ray.remote(num_cpus=0, max_restarts=-1)(Ear).remote()


def _work(data: dict[str, Any], order: dict[str, Any], ear: Any) -> tuple[str, Any]:
    """On a worker: run a trial. How it ended, and its last words, or what was wrong with the node."""
    with contextlib.suppress(OSError):
        os.chdir(order["cwd"])  # paths in a recipe are seen from there
    trial = Trial.from_dict(data)
    if trial.identity != order["identity"]:
        return "other", (
            f"engine='ray' expects the same source of normsmith, and of the model, on every node: got another on {os.uname().nodename}"
        )
    last: list[dict[str, Any]] = []

    def tell(word: Word) -> None:
        if word.status == "running":
            ear.say.remote(asdict(word))
        else:
            last.append(asdict(word))

    root = None if order["root"] is None else Path(order["root"])
    try:
        return run_trial(trial, Folder(order["folder"]), root, tell, order["log"]), last
    except ResultsError as error:
        return "full", str(error)


if __name__ == "__main__":
    main()

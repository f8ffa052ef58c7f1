"""A Ray cluster: each trial a task; one that loses its worker, or the node under it, goes on from the checkpoint on another.

Ray is talked to by a process of its own (ray_driver.py), as the local engine talks to its workers: what Ray prints, and a cluster that does
not answer, are then no concern of the process that asks.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import IO, Any

from normsmith.errors import BackendError, DependencyError, OptionError, ResultsError
from normsmith.trials.engines import Errand
from normsmith.trials.engines.common import FULL, UNREACHABLE, give_up, import_path
from normsmith.trials.trial import Word

_CONNECT = 5.0  # seconds in which a port must answer
_START = 60.0  # seconds in which Ray must: it imports torch, and starts a dozen processes where it is not running yet
_END = 20.0


class RayEngine:
    """As many tasks as the cluster has room for, or `workers`.

    `address` is "auto" for the cluster that this machine belongs to, HOST:PORT, or ray://HOST:PORT; by default RAY_ADDRESS, or if that is
    not set, Ray is started on this machine alone, for as long as the trials take.
    """

    ranks = 1

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and (type(workers) is not int or workers < 1):
            raise OptionError(f"compare expects workers, how many trials at once, as a positive integer: got {workers!r}")
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address not in {"auto", "local"} and not re.fullmatch(r"(ray://)?[^:/\s]+:\d+", address):
            raise OptionError(
                f"compare expects address, of a Ray cluster, as auto, HOST:PORT or ray://HOST:PORT: got {address!r}"
            )
        if importlib.util.find_spec("ray") is None:
            raise DependencyError("compare with engine='ray' expects Ray: got no such package; pip install 'normsmith[ray]'")
        self.address, self.workers = address, workers

    def run(self, errand: Errand) -> None:
        """Run all trials; when interrupted, stop them."""
        if not errand.trials:
            return
        device = str(errand.trials[0].option("device"))
        if device not in {"cpu", "cuda"}:
            raise OptionError(f"engine='ray' expects training.device as cpu or cuda, Ray chooses which: got {device!r}")
        _knock(self.address)
        with tempfile.TemporaryFile() as errors:
            driver = _start(errors)
            late = threading.Event()
            started = threading.Timer(_START, _give_up_on, (driver, late))
            try:
                started.start()
                self._talk(driver, errand, started)
                status = driver.wait(_END)
            finally:
                started.cancel()
                _stop(driver)
            errors.seek(0)
            said = errors.read().decode(errors="replace")[-4000:].strip()
        if status == FULL:
            raise ResultsError(said)
        if status == UNREACHABLE:
            raise BackendError(said)
        if status:
            got = f"no answer in {_START:.0f} seconds" if late.is_set() else said.rpartition("\n")[2] or f"exit status {status}"
            raise BackendError(
                f"engine='ray' expects a cluster that answers at {self.address!r}: got {got}; what is finished is intact"
            )

    def _talk(self, driver: "subprocess.Popen[str]", errand: Errand, started: threading.Timer) -> None:
        assert driver.stdin is not None
        assert driver.stdout is not None
        trials = {trial.identity: trial for trial in errand.trials}
        driver.stdin.write(json.dumps(self._task(errand)) + "\n")
        driver.stdin.flush()
        for line in driver.stdout:
            heard: dict[str, Any] = json.loads(line)
            match heard.pop("about"):
                case "start":
                    started.cancel()
                case "room":
                    warnings.warn(heard["said"], stacklevel=4)
                case "lost":
                    give_up(trials[heard["identity"]], errand, heard["reason"], heard["said"])
                case _:
                    errand.tell(Word(**heard))

    def _task(self, errand: Errand) -> dict[str, Any]:
        return {
            "address": self.address,
            "workers": self.workers,
            "folder": str(errand.folder.path.resolve()),
            "root": None if errand.root is None else str(errand.root.resolve()),
            "log": list(errand.log),
            "cwd": str(Path.cwd()),
            "trials": [trial.to_dict() for trial in errand.trials],
        }


def _knock(address: str) -> None:
    """Raise if nobody listens at an address."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise BackendError(
            f"engine='ray' expects a cluster at {address!r}: got no answer ({error}); start one with 'ray start --head', or leave "
            "address out to use this machine alone"
        ) from None


def _start(errors: IO[bytes]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "normsmith.trials.engines.ray_driver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONPATH": import_path()},
        start_new_session=True,  # an interrupt of the terminal is for the process that asks, which then ends this one
    )


def _give_up_on(driver: "subprocess.Popen[str]", late: threading.Event) -> None:
    late.set()
    driver.kill()


def _stop(driver: "subprocess.Popen[str]") -> None:
    """End it: it ends when its input does, and takes its tasks with it."""
    for pipe in (driver.stdin, driver.stdout):
        if pipe is not None:
            pipe.close()
    try:
        driver.wait(_END)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()

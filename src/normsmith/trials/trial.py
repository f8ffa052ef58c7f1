"""`run_trial`: one trial from its checkpoint, or from the start, to its results."""

import math
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from normsmith.errors import ResultsError
from normsmith.models.tasks import TASKS
from normsmith.trials.algorithms import Algorithm, begin
from normsmith.trials.average import Average
from normsmith.trials.build import build, place
from normsmith.trials.files import Folder
from normsmith.trials.loggers import Journal
from normsmith.trials.memory import kept_for_backward, watch_peak
from normsmith.trials.observed import observed
from normsmith.trials.plan import Trial, source_version
from normsmith.trials.share import ALONE, Share
from normsmith.trials.training import Run, evaluate, make_optimizer, train_epoch

_UNTRAINED = 0.1  # share of the first weights in an average that is worth a word
_PATIENCE = 0.2  # seconds between two words on a trial


@dataclass(frozen=True)
class Word:
    """How far a trial is."""

    identity: str
    step: int
    total: int
    score: float | None = None
    status: str = "running"


Tell = Callable[[Word], None]


def run_trial(
    trial: Trial,
    folder: Folder,
    root: str | Path | None = None,
    tell: Tell = lambda _: None,
    log: Sequence[str] = (),
    share: Share = ALONE,
) -> str:
    """Run it, unless it is done or another process is at it; the status: finished, diverged, crashed or busy.

    A trial that diverges or raises is a result too. Killed at any moment it goes on from the end of the last epoch, to the same bits.
    `log` names loggers; `share` is what this process does of it.
    """
    identity = trial.identity
    folder.prepare()
    try:
        with FileLock(folder.running / f"{identity}.lock", timeout=0):
            known = folder.manifest(identity)
            status = known["status"] if known else _run(trial, identity, folder, root, tell, log, share)
    except Timeout:
        return "busy"
    (folder.running / f"{identity}.lock").unlink(missing_ok=True)
    return str(status)


def _run(
    trial: Trial, identity: str, folder: Folder, root: str | Path | None, tell: Tell, log: Sequence[str], share: Share
) -> str:
    began = time.time()
    place = None if root is None else str(root)
    journal = Journal(log, trial, identity, folder.path)
    share.begin(trial, place)
    run, outcome = attempt(trial, identity, folder, place, share, tell, journal)
    journal.close(str(outcome["status"]))
    manifest = {
        "trial": trial.to_dict(),
        **outcome,
        "notes": [*outcome.get("notes", []), *journal.notes],
        "environment": environment(),
        "started": began,
        "ended": time.time(),
    }
    folder.finish(identity, manifest, run.records if run is not None else [])
    tell(Word(identity, run.step if run else 0, run.step if run else 0, outcome["accuracy"], outcome["status"]))
    return str(outcome["status"])


def attempt(
    trial: Trial,
    identity: str,
    folder: Folder,
    root: str | None,
    share: Share,
    tell: Tell = lambda _: None,
    journal: Journal | None = None,
) -> tuple[Run | None, dict[str, Any]]:
    """Do this process's share of a trial; the training, if it came to one, and what came of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(trial.option("threads"))
    run: Run | None = None
    outcome: dict[str, Any] = {}
    error = None
    try:
        training = Training(trial, identity, begin(trial, root, share), share)
        run = training.run
        outcome = training.to_the_end(folder, tell, journal)
    except ResultsError:
        raise
    except Exception as raised:  # noqa: BLE001  (whatever a trial raises is its result)
        error = f"{type(raised).__name__}: {raised}"
        outcome = {"traceback": traceback.format_exc()}
    finally:
        torch.set_num_threads(threads)
    error = share.end(error)
    if error is not None:
        outcome = {"status": "crashed", "accuracy": None, "error": error, **outcome}
    return run, outcome


def environment() -> dict[str, Any]:
    """What a time was measured on."""
    return {
        "source": source_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.node(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),
    }


class Training:
    """A trial with its algorithm, model and loop."""

    def __init__(self, trial: Trial, identity: str, algorithm: Algorithm, share: Share) -> None:
        self.trial, self.identity, self.algorithm, self.share = trial, identity, algorithm, share
        self._spoken = time.monotonic()
        dataset = algorithm.sets[0]
        self.task = TASKS[dataset.task]
        self.total = trial.steps or (trial.epochs or 0) * algorithm.steps
        layout = torch.channels_last if trial.option("channels_last") else torch.contiguous_format
        device = torch.device(trial.option("device"))
        model = build(trial, dataset).to(device, memory_format=layout)  # type: ignore[call-overload]
        place(model, trial, algorithm)
        share.join(model)
        average = Average(model, float(trial.option("ema"))) if trial.option("ema") else None
        self.run = Run(model, make_optimizer(model, trial), average)

    def to_the_end(self, folder: Folder, tell: Tell, journal: Journal | None = None) -> dict[str, Any]:
        """Train from the checkpoint on; what came of it."""
        state = self.share.agree(folder.checkpoint(self.identity))
        if state is not None:
            self.run.load(state)
            self.algorithm.load_state(state["algorithm"])
        follow = (lambda _: None) if journal is None else journal.follow
        follow(self.run.records)
        status = "finished"
        while self.run.step < self.total:
            self.share.seed(self.trial.seed, self.run.epoch)
            peak = watch_peak(torch.device(self.trial.option("device")))
            measured = train_epoch(
                self.run,
                self.trial,
                self.algorithm,
                self.algorithm.batches(self.run.epoch, self.run.step),
                self.total,
                self._telling(tell),
                self.share,
            )
            self._end_epoch({**measured, **peak(), **self.algorithm.values()})
            follow(self.run.records)
            if not math.isfinite(measured["train loss"]):
                status = "diverged"
                break
            if self._has_settled(measured["train loss"]):
                break
            if self.run.step < self.total:
                folder.save_checkpoint(self.identity, {**self.run.state(), "algorithm": self.algorithm.state()})
        if self.trial.option("keep_weights"):
            average = self.run.average
            model = self.run.model if average is None else average.applied(self.run.model)
            folder.save_weights(self.identity, model.state_dict())
        last = {name: value for epoch, _, _, name, value in self.run.records if epoch == self.run.epoch - 1}
        return {
            "status": status,
            "accuracy": last.get("accuracy"),
            "parameters": sum(p.numel() for p in self.run.model.parameters()),
            "steps": self.run.step,
            "timing": {
                "seconds": self.run.seconds,
                "seconds per step": last.get("seconds per step"),
                "seconds to target": self._to_target(),
            },
            "memory": self._memory(),
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        """What a reader of the results should know."""
        notes = [note for dataset in self.algorithm.sets for note in dataset.notes]
        average = self.run.average
        if average is not None and average.decay**self.run.step > _UNTRAINED:
            share = f"{100 * average.decay**self.run.step:.0f} %"
            notes.append(
                f"the average of weights with ema = {average.decay:g} is {share} first weights after {self.run.step} steps"
            )
        return notes

    def _memory(self) -> int:
        x = next(self.algorithm.batches(0, 0))[0]
        return kept_for_backward(self.run.model, self.share.part(x[: self.trial.statistics_batch]), self.algorithm.forward)

    def _telling(self, tell: Tell) -> Callable[[int], None]:
        """Tell of steps, not too often."""
        score = next((v for _, _, _, name, v in reversed(self.run.records) if name == "accuracy"), None)

        def told(step: int) -> None:
            if time.monotonic() - self._spoken > _PATIENCE:
                self._spoken = time.monotonic()
                tell(Word(self.identity, step, self.total, score))

        return told

    def _end_epoch(self, measured: dict[str, float]) -> None:
        """Evaluate and record."""
        run = self.run
        model = run.model if run.average is None else run.average.applied(run.model)
        values = dict(measured)
        for test in self.algorithm.tests:
            loss, accuracy = evaluate(model, self.trial, test, self.task, self.share)
            values |= {f"{test.name}test loss": loss, f"{test.name}accuracy": accuracy}
        values["seconds"] = run.seconds
        run.records += [(run.epoch, run.step, "", name, value) for name, value in values.items()]
        for layer, name, value in observed(model, self.trial.option("record"), self.algorithm.tests[0]):
            run.records.append((run.epoch, run.step, layer, name, value))
        run.epoch += 1

    def _has_settled(self, loss: float) -> bool:
        """Whether the training loss has not fallen for as many epochs as the recipe waits."""
        patience, run = self.trial.option("patience"), self.run
        run.best_loss, run.epochs_since_best = (loss, 0) if loss < run.best_loss else (run.best_loss, run.epochs_since_best + 1)
        return patience is not None and run.epochs_since_best >= patience

    def _to_target(self) -> float | None:
        """The seconds of training until the target accuracy, None if it was not reached."""
        target = self.trial.target_accuracy
        if target is None:
            return None
        by_epoch: dict[int, dict[str, float]] = {}
        for epoch, _, layer, name, value in self.run.records:
            if not layer:
                by_epoch.setdefault(epoch, {})[name] = value
        return next((values["seconds"] for _, values in sorted(by_epoch.items()) if values["accuracy"] >= target), None)

"""Loggers: what is recorded of a trial goes to TensorBoard, Weights & Biases, trackio or MLflow too, at the end of every epoch.

A logger has the three methods of `Logger`, as those of Lightning do. None changes a result: logging is no part of a trial's identity, and
a logger that fails is left out from there on, with a note in the trial's manifest.
"""

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from normsmith.errors import DependencyError, OptionError
from normsmith.locate import load_factory
from normsmith.trials.files import Record
from normsmith.trials.plan import Trial


class Logger(Protocol):
    """What a logger can do. One that knows the last step it has, from before an interruption, says so in `reached`."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """What is tried."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """What was recorded after so many updates of the weights."""

    def finalize(self, status: str) -> None:
        """Nothing follows: the trial is finished, diverged or crashed."""


@dataclass(frozen=True)
class Place:
    """Where a logger belongs: the sweep, by its folder, and the trial."""

    folder: Path
    title: str
    identity: str

    @property
    def project(self) -> str:
        """What the trials of a sweep are kept under."""
        return self.folder.resolve().name


class TensorBoard:
    """DIR/tensorboard/TRIAL, written anew from the records where a trial goes on."""

    reached = -1

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = place.folder / "tensorboard" / f"{re.sub(r'[^-+.=0-9A-Za-z]+', '_', place.title)}_{place.identity[:6]}"
        for left in folder.glob("events.out.tfevents.*"):
            left.unlink()
        self._writer: Any = SummaryWriter(str(folder))

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """For the tab of hyperparameters, beside the accuracy."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(params, {"accuracy": 0.0}):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finalize(self, status: str) -> None:
        """Close the file."""
        self._writer.add_text("status", status)
        self._writer.close()


class _Run:
    """A run of Weights & Biases, or of a package with its interface."""

    def __init__(self, run: Any, following: int) -> None:
        self._run, self.reached = run, following - 1

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """The configuration."""
        for name, value in params.items():
            self._run.config[name] = value

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """All of a step at once."""
        self._run.log(dict(metrics), step=step)


class WeightsAndBiases(_Run):
    """The run with the trial's identity, resumed if it is there."""

    def __init__(self, place: Place) -> None:
        import wandb

        run = wandb.init(
            project=place.project,
            id=place.identity,
            name=place.title,
            dir=str(place.folder),
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(silent=True),
        )
        super().__init__(run, int(run.step))

    def finalize(self, status: str) -> None:
        """A trial that did not finish counts as failed there."""
        self._run.finish(exit_code=int(status != "finished"))


class Trackio(_Run):
    """The run with the trial's title and identity, resumed if it is there."""

    def __init__(self, place: Place) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):  # standard output is for results
            run = trackio.init(place.project, f"{place.title} {place.identity[:6]}", resume="allow", embed=False)
        super().__init__(run, int(run._next_step))  # it has no other name for it

    def finalize(self, status: str) -> None:
        """Send what is left."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


class MLflow:
    """A run in the experiment of the sweep: of MLFLOW_TRACKING_URI, or in DIR/mlflow.db."""

    def __init__(self, place: Place) -> None:
        from filelock import FileLock
        from mlflow import MlflowClient

        with FileLock(place.folder / "mlflow.lock"):  # it makes its tables, and experiments, without asking who else does
            self._client: Any = MlflowClient(
                os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{place.folder.resolve()}/mlflow.db"
            )
            found = self._client.get_experiment_by_name(place.project)
            experiment = self._client.create_experiment(place.project) if found is None else found.experiment_id
        runs = self._client.search_runs([experiment], f"tags.identity = '{place.identity}'")
        run = runs[0] if runs else self._client.create_run(experiment, run_name=place.title, tags={"identity": place.identity})
        self._run = run.info.run_id
        self.reached = max((metric.step for metric in self._client.get_metric_history(self._run, "epoch")), default=-1)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Parameters are text there."""
        for name, value in params.items():
            self._client.log_param(self._run, name, value)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One after the other, the epoch last: by it a run knows how far it is."""
        for name in sorted(metrics, key=lambda name: name == "epoch"):
            self._client.log_metric(self._run, re.sub(r"[^-\w./: ]", "_", name), metrics[name], step=step)

    def finalize(self, status: str) -> None:
        """A trial that did not finish counts as failed there."""
        self._client.set_terminated(self._run, "FINISHED" if status == "finished" else "FAILED")


# By name: the package, how to get it, and the logger.
_KNOWN: dict[str, tuple[str, Callable[[Place], Logger]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "trackio": ("trackio", Trackio),
    "mlflow": ("mlflow", MLflow),
}


def check(names: Collection[str]) -> tuple[str, ...]:
    """The names, if there is such a logger and what it needs."""
    for name in names:
        if ":" in name:
            load_factory(name, "a logger")
            continue
        if name not in _KNOWN:
            raise OptionError(f"loggers are expected among {', '.join(_KNOWN)}, or package.module:factory: got {name!r}")
        package, _ = _KNOWN[name]
        if importlib.util.find_spec(package) is None:
            raise DependencyError(f"the logger {name!r} expects the package {package}: got none; pip install {package}")
    return tuple(names)


class Journal:
    """The loggers of one trial."""

    def __init__(self, names: Iterable[str], trial: Trial, identity: str, folder: Path) -> None:
        self.notes: list[str] = []
        self._loggers: dict[str, Logger] = {}
        self._told: dict[str, int] = {}
        place = Place(folder, trial.title, identity)
        for name in names:
            self._try(name, lambda name=name: self._open(name, place, trial))  # type: ignore[misc]

    def _open(self, name: str, place: Place, trial: Trial) -> None:
        make = _KNOWN[name][1] if name in _KNOWN else _of_a_user(name)
        logger = self._loggers[name] = make(place)
        logger.log_hyperparams(_flat(trial.to_dict()))

    def follow(self, records: list[Record]) -> None:
        """Tell each logger what it has not been told yet. The first time, of a trial that goes on, it may know some of it already."""
        if not self._loggers:
            return
        steps: dict[int, dict[str, float]] = {}
        for epoch, step, layer, name, value in records:
            steps.setdefault(step, {"epoch": epoch})[f"{layer}/{name}" if layer else name] = value
        for name, logger in list(self._loggers.items()):
            told = self._told.setdefault(name, getattr(logger, "reached", max(steps, default=-1)))
            self._try(name, lambda logger=logger, told=told: _tell(logger, steps, told))  # type: ignore[misc]
            self._told[name] = max([told, *steps])

    def close(self, status: str) -> None:
        """Nothing follows."""
        for name, logger in list(self._loggers.items()):
            self._try(name, lambda logger=logger: logger.finalize(status))  # type: ignore[misc]

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  (networks and packages fail in many ways; the trial goes on)
            self._loggers.pop(name, None)
            self.notes.append(f"logging to {name} ended with {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _tell(logger: Logger, steps: dict[int, dict[str, float]], told: int) -> None:
    for step, metrics in steps.items():
        if step > told:
            logger.log_metrics(metrics, step)


def _of_a_user(spec: str) -> Callable[[Place], Logger]:
    make = load_factory(spec, "a logger")
    return lambda place: make(place.title, str(place.folder))


def _flat(trial: dict[str, Any]) -> dict[str, Any]:
    """Settings by one name each, with values that every logger takes: numbers, booleans and text."""
    flat: dict[str, Any] = {}
    for name, value in trial.items():
        inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: each if isinstance(each, int | float | str) else str(each) for key, each in inner.items()}
    return flat

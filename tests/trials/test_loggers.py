"""Every epoch is logged once, whatever happens to the trial; and whatever happens to a logger, the trial goes on."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from trials.helpers_trials import records, trials

from normsmith.errors import DependencyError, OptionError
from normsmith.trials.files import Folder
from normsmith.trials.loggers import check
from normsmith.trials.trial import run_trial

HERE = Path(__file__)
TOLD: list[tuple[str, object]] = []


class Own:
    """A user's logger."""

    def __init__(self, name: str, folder: str) -> None:
        TOLD.append(("name", name))

    def log_hyperparams(self, params) -> None:
        TOLD.append(("params", params))

    def log_metrics(self, metrics, step) -> None:
        TOLD.append(("step", step))

    def finalize(self, status) -> None:
        TOLD.append(("status", status))


class Failing(Own):
    def log_metrics(self, metrics, step) -> None:
        raise ConnectionError("no network")


class FakeRun:
    """A run of the interface that Weights & Biases and trackio share; it keeps its history, as they do."""

    history: ClassVar[list[tuple[int, dict[str, float]]]] = []
    ended: ClassVar[list[object]] = []

    def __init__(self, **options) -> None:
        self.options, self.config = options, {}
        self.step = self._next_step = max((step for step, _ in self.history), default=-1) + 1

    def log(self, metrics, step) -> None:
        self.history.append((step, metrics))

    def finish(self, exit_code=None) -> None:
        self.ended.append(exit_code)


class FakeClient:
    """As much of MLflow's client as is used, over a store that outlives it."""

    runs: ClassVar[dict[str, list[tuple[str, float, int]]]] = {}
    uris: ClassVar[list[str]] = []
    ended: ClassVar[list[str]] = []

    def __init__(self, uri: str) -> None:
        self.uris.append(uri)

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="1") if self.runs else None

    def create_experiment(self, name):
        return "1"

    def search_runs(self, experiments, text):
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in self.runs if f"'{run}'" in text]

    def create_run(self, experiment, run_name, tags):
        self.runs[tags["identity"]] = []
        return SimpleNamespace(info=SimpleNamespace(run_id=tags["identity"]))

    def get_metric_history(self, run, name):
        return [SimpleNamespace(step=step) for key, _, step in self.runs[run] if key == name]

    def log_param(self, run, name, value) -> None:
        pass

    def log_metric(self, run, name, value, step) -> None:
        self.runs[run].append((name, value, step))

    def set_terminated(self, run, status) -> None:
        self.ended.append(status)


def interrupted(trial, folder: Folder, log: list[str]) -> None:
    """Run a trial that is interrupted between the log of its second epoch and the checkpoint, and then run it to its end."""
    keep = folder.save_checkpoint

    def once_more(identity, state) -> None:
        if state["epoch"] == 2:
            raise KeyboardInterrupt
        keep(identity, state)

    folder.save_checkpoint = once_more
    with pytest.raises(KeyboardInterrupt):
        run_trial(trial, folder, log=log)
    folder.save_checkpoint = keep
    assert run_trial(trial, folder, log=log) == "finished"
    assert folder.manifest(trial.identity)["notes"] == []


def expected(folder: Folder, trial) -> list[tuple[str, float, int]]:
    return [(name, value, step) for _, step, _, name, value in records(folder, trial) if name in {"accuracy", "train loss"}]


def test_tensorboard_has_every_epoch_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trial, folder = trials(training={"record": ["moments"]})[0], Folder(tmp_path)
    interrupted(trial, folder, ["tensorboard"])
    (place,) = (tmp_path / "tensorboard").iterdir()
    assert place.name == f"digits_train=120_test=60_mlp_relu_batch_batch_20_seed_0_{trial.identity[:6]}"
    log = EventAccumulator(str(place)).Reload()
    found = [(name, event.value, event.step) for name in ("train loss", "accuracy") for event in log.Scalars(name)]
    assert sorted(found) == [(n, pytest.approx(v, rel=1e-6), s) for n, v, s in sorted(expected(folder, trial))]
    assert any("/mean" in tag for tag in log.Tags()["scalars"]), "what is recorded of layers is there too"
    assert log.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_has_every_epoch_once(tmp_path, monkeypatch, name):
    FakeRun.history, FakeRun.ended, made = [], [], []

    def init(*args, **options):
        made.append(FakeRun(args=args, **options))
        return made[-1]

    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, Settings=dict))
    trial, folder = trials()[0], Folder(tmp_path / "sweep")
    interrupted(trial, folder, [name])
    found = [
        (key, metrics[key], step) for step, metrics in FakeRun.history for key in metrics if key in {"accuracy", "train loss"}
    ]
    assert sorted(found) == sorted(expected(folder, trial))
    assert {metrics["epoch"] for _, metrics in FakeRun.history} == {0, 1, 2}
    assert made[0].config["seed"] == 0
    assert made[0].config["training.threads"] == 1
    assert made[0].options["resume"] == "allow"
    assert "sweep" in {made[0].options.get("project"), *made[0].options["args"]}
    assert FakeRun.ended == [0 if name == "wandb" else None]


def test_mlflow_has_every_epoch_once(tmp_path, monkeypatch):
    FakeClient.runs, FakeClient.uris, FakeClient.ended = {}, [], []
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=FakeClient))
    trial, folder = trials()[0], Folder(tmp_path)
    interrupted(trial, folder, ["mlflow"])
    found = [metric for metric in FakeClient.runs[trial.identity] if metric[0] in {"accuracy", "train loss"}]
    assert sorted(found) == sorted(expected(folder, trial))
    assert set(FakeClient.uris) == {f"sqlite:///{tmp_path}/mlflow.db"}
    assert FakeClient.ended == ["FINISHED"]


def test_a_logger_of_a_user_and_one_that_fails(tmp_path):
    TOLD.clear()
    sys.modules["own_logs"] = sys.modules[__name__]
    trial, folder, plain = trials()[0], Folder(tmp_path / "logged"), Folder(tmp_path / "plain")
    assert run_trial(trial, folder, log=check(["own_logs:Own", "own_logs:Failing"])) == "finished"
    assert run_trial(trial, plain) == "finished"
    assert [value for what, value in TOLD if what == "step"] == [6, 12, 18]
    assert [value for what, value in TOLD if what == "status"] == ["finished"]
    assert next(value for what, value in TOLD if what == "name") == trial.title
    assert repr(records(folder, trial)) == repr(records(plain, trial))
    assert folder.manifest(trial.identity)["notes"] == ["logging to own_logs:Failing ended with ConnectionError: no network"]


def test_what_is_not_there_is_one_sentence(monkeypatch):
    with pytest.raises(
        OptionError, match=r"among tensorboard, wandb, trackio, mlflow, or package.module:factory: got 'tensorbord'"
    ):
        check(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="the logger 'wandb' expects the package wandb: got none; pip install wandb"):
        check(["wandb"])

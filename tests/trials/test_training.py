"""The loop against one written out here, and against itself after being killed."""

import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from trials.helpers_trials import DATA, records, trials

from normsmith import data, models
from normsmith.trials.average import Average
from normsmith.trials.build import build
from normsmith.trials.files import Folder
from normsmith.trials.memory import kept_for_backward, watch_peak
from normsmith.trials.plan import Trial
from normsmith.trials.training import rate_at
from normsmith.trials.trial import run_trial


def values(folder: Folder, trial: Trial, name: str) -> list[float]:
    return [row[4] for row in records(folder, trial) if row[3] == name]


def by_hand(trial: Trial, part: int, clip: float = 0.0) -> tuple[list[float], list[float], torch.nn.Module]:
    """The losses and accuracies of each epoch: SGD with momentum and a cosine, in few lines."""
    digits = data.load(DATA)
    torch.set_num_threads(1)
    torch.manual_seed(trial.seed)
    model = models.make("mlp_relu", num_classes=10, in_channels=1, image_size=8, norm=trial.normalizer)
    decayed = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    others = [p for p in model.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": trial.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=trial.learning_rate, momentum=trial.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=18)
    train = data.Batches(digits.train, trial.batch, seed=trial.seed, mean=digits.mean, std=digits.std)
    test = data.Batches(digits.test, 256, shuffle=False, mean=digits.mean, std=digits.std)
    losses, scores = [], []
    for epoch in range(3):
        total = 0.0
        model.train()
        for x, y in train.epoch(epoch):
            optimizer.zero_grad()
            for i in range(0, len(x), part):
                loss = F.cross_entropy(model(x[i : i + part]), y[i : i + part]) * part / len(x)
                loss.backward()
                total += float(loss.detach()) * len(x)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
        losses.append(total / 120)
        model.eval()
        with torch.no_grad():
            scores.append(sum(float((model(x).argmax(1) == y).sum()) for x, y in test) / 60)
    return losses, scores, model


@pytest.mark.parametrize(("change", "part"), [({}, 20), ({"statistics_batch": 5}, 5), ({"training": {"clip": 0.5}}, 20)])
@pytest.mark.parametrize("number", [0, 1])
def test_it_is_the_loop_that_one_would_write(tmp_path, change, part, number):
    trial, folder = trials(**change)[number], Folder(tmp_path)
    assert run_trial(trial, folder) == "finished"
    losses, scores, _ = by_hand(trial, part, change.get("training", {}).get("clip", 0.0))
    assert values(folder, trial, "train loss") == pytest.approx(losses, rel=1e-4)
    assert values(folder, trial, "accuracy") == pytest.approx(scores, abs=1.01 / 60)
    manifest = folder.manifest(trial.identity)
    assert manifest["accuracy"] == values(folder, trial, "accuracy")[-1]
    assert manifest["steps"] == 18
    assert manifest["timing"]["seconds"] > 0
    table = pl.read_parquet(folder.trials / f"{trial.identity}.parquet")
    assert table.filter(pl.col("name") == "peak memory")["epoch"].to_list() == (
        [0, 1, 2] if Path("/proc/self/clear_refs").exists() else []
    )


def test_rates():
    trial = trials(schedule={"name": "cosine", "warmup": 0.2})[0]
    rates = [rate_at(trial, step, 10) for step in range(10)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[2] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    steps = trials(schedule={"name": "step", "milestones": [0.5, 0.8], "factor": 10})[0]
    assert [rate_at(steps, step, 10) for step in (0, 4, 5, 7, 8, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    constant = trials(schedule={"name": "constant"})[0]
    assert {rate_at(constant, step, 10) for step in range(10)} == {1.0}


def test_steps_end_in_the_middle_of_an_epoch(tmp_path):
    trial, folder = trials(epochs=None, steps=8)[0], Folder(tmp_path)
    assert run_trial(trial, folder) == "finished"
    assert folder.manifest(trial.identity)["steps"] == 8
    assert len(values(folder, trial, "train loss")) == 2


def test_an_average_is_what_is_evaluated(tmp_path):
    decay = 0.9
    trial, folder = trials(training={"ema": decay, "keep_weights": True})[0], Folder(tmp_path)
    assert run_trial(trial, folder) == "finished"
    kept = folder.load_weights(trial.identity)
    model = torch.nn.BatchNorm1d(3)
    average = Average(model, decay)
    before = copy.deepcopy(average.state)
    with torch.no_grad():
        model.weight.add_(1.0)
        model.num_batches_tracked += 5
    average.update(model)
    torch.testing.assert_close(average.state["weight"], decay * before["weight"] + (1 - decay) * model.weight.detach())
    assert int(average.state["num_batches_tracked"]) == 5
    assert float(average.applied(model).weight.detach().sum()) == pytest.approx(3.3)
    _, _, last = by_hand(trial, 20)
    weights = [name for name in kept if name.endswith("weight")]
    assert any(not torch.allclose(kept[name], last.state_dict()[name]) for name in weights)


def test_everything_that_can_be_turned_on_runs_and_resumes(tmp_path):
    record = ["ratios", "gains", "moments"]
    training = {"amp": True, "channels_last": True, "ema": 0.5, "clip": 1.0, "augment": "crop:padding=1", "record": record}
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    change = {
        "models": ["resnet20:width=4,depths=(1,1,1)"],
        "normalizers": ["switchable", "kalman"],
        "training": training,
        "epochs": 2,
    }
    for trial in trials(**change):
        assert run_trial(trial, one) == "finished", one.manifest(trial.identity)["traceback"]
        names = {row[3] for row in records(one, trial) if row[2]}
        assert {"mean", "variance", "excess kurtosis"} <= names
        assert ("mean share of batch" in names) == (trial.label == "switchable")
        assert ("gain" in names) == (trial.label == "kalman")
        stop_after_an_epoch(trial, two)
        assert run_trial(trial, two) == "finished"
        assert records(one, trial) == records(two, trial)


class StopError(BaseException):
    """Ends a trial like a kill: nothing of it is caught."""


def stop_after_an_epoch(trial: Trial, folder: Folder) -> None:
    """Run until the first checkpoint."""
    save = Folder.save_checkpoint

    def save_and_stop(self, identity, state):
        save(self, identity, state)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "save_checkpoint", save_and_stop)
        with pytest.raises(StopError):
            run_trial(trial, folder)
    assert folder.checkpoint(trial.identity) is not None
    assert folder.manifest(trial.identity) is None


def test_early_stop(tmp_path):
    flat = trials(
        epochs=9, optimizers=[{"learning_rate": 1e-12, "weight_decay": 0.0}], training={"patience": 2}, models=["deep_linear"]
    )
    folder = Folder(tmp_path)
    run_trial(flat[0], folder)
    assert folder.manifest(flat[0].identity)["steps"] < 9 * 6


def test_time_to_a_target(tmp_path):
    for target, reached in ((0.1, True), (1.0, False)):
        trial, folder = trials(target_accuracy=target)[0], Folder(tmp_path)
        run_trial(trial, folder)
        seconds = folder.manifest(trial.identity)["timing"]["seconds to target"]
        assert (seconds is not None) == reached


def test_a_trial_that_diverges_is_a_result(tmp_path):
    trial, folder = trials(optimizers=[{"learning_rate": 1e30}], normalizers=["none"], models=["mlp_relu"])[0], Folder(tmp_path)
    assert run_trial(trial, folder) == "diverged"
    manifest = folder.manifest(trial.identity)
    assert 0 <= manifest["accuracy"] <= 0.5
    assert manifest["steps"] == 6, "it stops at the end of the epoch in which the loss is no number"


def test_a_trial_that_raises_is_a_result(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.n = nn.BatchNorm2d(1); self.f = nn.Linear(64, 10); self.calls = 0\n"
        "    def forward(self, x):\n        self.calls += 1\n        if self.calls > 4: raise RuntimeError('out of ideas')\n"
        "        return self.f(self.n(x).flatten(1))\n"
    )
    trial, folder = trials(models=[f"{tmp_path}/net.py:Net"])[0], Folder(tmp_path / "out")
    assert run_trial(trial, folder) == "crashed"
    manifest = folder.manifest(trial.identity)
    assert manifest["accuracy"] is None
    assert manifest["error"] == "RuntimeError: out of ideas"
    assert "in forward" in manifest["traceback"]


def test_a_mapping_of_parts():
    (trial,) = trials(normalizers=[{"backbone": "frozen", "backbone.6": "layer"}], models=["shallow_cnn:width=4"])
    model = build(trial, data.load(DATA))
    found = [type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__]
    assert found == ["FrozenNorm", "FrozenNorm", "FrozenNorm", "LayerNorm"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system has no /proc")
def test_the_peak_of_a_while_forgets_what_was_before(monkeypatch):
    before = torch.ones(100_000_000)
    del before
    told = watch_peak(torch.device("cpu"))
    low = told()["peak memory"]
    during = torch.ones(40_000_000)
    del during
    assert 150e6 < told()["peak memory"] - low < 250e6
    monkeypatch.setattr("normsmith.trials.memory._PEAK", Path("/nowhere/clear_refs"))
    assert watch_peak(torch.device("cpu"))() == {}


def test_memory_of_a_forward():
    model = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.Sigmoid(), torch.nn.Linear(100, 1))
    x = torch.zeros(7, 10)
    assert kept_for_backward(model, x) == 4 * (7 * 10 + 7 * 100)
    state = torch.get_rng_state()
    dropout = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))
    state = torch.get_rng_state()
    assert kept_for_backward(dropout, torch.zeros(2, 3)) > 0
    assert torch.equal(state, torch.get_rng_state())


SCRIPT = """
import json, sys
from pathlib import Path
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.trial import run_trial
print("ready", flush=True)
print(run_trial(Trial.from_dict(json.loads(Path(sys.argv[1]).read_text())), Folder(sys.argv[2])))
"""


def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path):
    import json

    (trial,) = trials(normalizers=["noisy"], models=["shallow_cnn:width=4"], batch_sizes=[4], epochs=8)
    whole, killed = Folder(tmp_path / "whole"), Folder(tmp_path / "killed")
    (tmp_path / "trial.json").write_text(json.dumps(trial.to_dict()))
    assert run_trial(trial, whole) == "finished"
    seconds = whole.manifest(trial.identity)["timing"]["seconds"]
    draws, kills = random.Random(0), 0
    for _ in range(20):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "trial.json"), str(killed.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(draws.uniform(0.2, 0.8) * seconds if kills < 3 else 300)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                continue
        break
    assert kills >= 2, "it was never killed"
    assert killed.manifest(trial.identity)["status"] == "finished"
    assert records(killed, trial) == records(whole, trial)
    assert killed.checkpoint(trial.identity) is None


def test_two_processes_do_not_run_one_trial(tmp_path):
    from filelock import FileLock

    trial, folder = trials()[0], Folder(tmp_path)
    folder.prepare()
    with FileLock(folder.running / f"{trial.identity}.lock"):
        assert run_trial(trial, folder) == "busy"
    began = time.time()
    assert run_trial(trial, folder) == "finished"
    manifest = folder.manifest(trial.identity)
    assert manifest["started"] >= began - 1
    assert run_trial(trial, folder) == "finished", "and is not run again"
    assert folder.manifest(trial.identity)["started"] == manifest["started"]

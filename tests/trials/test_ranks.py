"""One trial by several processes: the same as by one, up to rounding."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch.distributed as dist
from ranks import run_ranks
from torch import nn

from normsmith.comparison.results import load
from normsmith.errors import InputError, SynchronizationError
from normsmith.trials.engines import Errand
from normsmith.trials.engines import ranks as engines_ranks
from normsmith.trials.engines.inline import InlineEngine
from normsmith.trials.engines.ranks import RanksEngine
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial, plan
from normsmith.trials.recipe import read
from normsmith.trials.sweep import refuse_impossible

HERE = Path(__file__)


class Exact(nn.Module):
    """In float64, so that what differs by rounding differs by less than 1e-10 after some dozen steps."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(54, 10),
        ).double()

    def forward(self, x):
        return self.body(x.double())


def failing(rank: int) -> nn.Module:
    """A model that fails after a while on one of the ranks, or, if that is 2, on both."""
    model = Exact()
    steps = iter(range(4))

    def fail(*_: object) -> None:
        if next(steps, None) is None and rank in {2, dist.get_rank()}:
            raise ValueError("enough")

    model.body[0].register_forward_pre_hook(fail)
    return model


def trials(ranks: int, **changes) -> list[Trial]:
    data = {
        "datasets": ["digits:train=70,test=45"],
        "models": [f"{HERE}:Exact"],
        "normalizers": ["switchable", "group:num_groups=2"],
        "batch_sizes": [7],
        "epochs": 3,
        "seeds": 1,
    }
    return plan(read({**data, **changes}), "cpu", ranks)


def by_ranks(rank: int, folder: str, changes: dict, upto: int | None = None) -> object:
    engine = RanksEngine()
    what = trials(2, **changes)[:upto]

    def sweep() -> list[Trial]:
        engine.run(Errand(what, Folder(folder), None, lambda _: None))
        return what

    return [trial.identity for trial in engine.among_ranks(sweep)]


def values(folder: Path) -> pl.DataFrame:
    results = load(folder)
    assert set(results.trials["status"]) == {"finished"}, [m.get("traceback") for m in results.manifests.values()]
    named = results.trials.select("identity", "normalizer", "batch")
    wanted = ("train loss", "test loss", "accuracy", "gradient norm", "largest gradient norm")
    return results.records(*wanted).join(named, on="identity").sort("normalizer", "batch", "epoch", "name")


@pytest.mark.parametrize(
    "changes",
    [
        {},  # 7 samples: 4 and 3
        pytest.param(
            {"batch_sizes": [12], "statistics_batch": 3, "training": {"clip": 0.5, "ema": 0.9}}, marks=pytest.mark.slow
        ),
    ],
    ids=["uneven", "parts"],
)
def test_ranks_give_what_one_process_gives(tmp_path, changes):
    InlineEngine().run(Errand(trials(1, **changes), Folder(tmp_path / "one"), None, lambda _: None))
    identities = run_ranks(2, by_ranks, str(tmp_path / "two"), changes)
    assert identities[0] == identities[1] == [trial.identity for trial in trials(2, **changes)]
    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    assert one.drop("identity", "value").equals(two.drop("identity", "value"))
    for name, expected, got in zip(one["name"], one["value"], two["value"], strict=True):
        # Losses are summed in float64 too; float32 only counts, and holds a sum of at most 45 losses in evaluation.
        assert got == pytest.approx(expected, rel=1e-6, nan_ok=True), name


@pytest.mark.slow
def test_a_failure_of_all_ranks_is_a_result_and_the_next_trial_runs(tmp_path):
    first, second = run_ranks(2, by_ranks, str(tmp_path), {"models": [f"{HERE}:failing(2)", f"{HERE}:Exact"]})
    assert first == second
    results = load(tmp_path)
    assert sorted(results.trials["status"]) == ["crashed", "crashed", "finished", "finished"]
    crashed = next(m for m in results.manifests.values() if m["status"] == "crashed")
    assert crashed["error"] == "ValueError: enough"
    assert "in fail" in crashed["traceback"]


def lonely(rank: int, folder: str, failing: int) -> object:
    engines_ranks._TOGETHER = datetime.timedelta(seconds=3)
    try:
        return by_ranks(rank, folder, {"models": [f"{HERE}:failing({failing})"]})
    except SynchronizationError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_rank_ends_all_and_is_no_result(tmp_path, failing):
    said = run_ranks(2, lonely, str(tmp_path), failing, timeout=20)
    assert "ended with ValueError: enough, the others did not" in said[failing]
    assert load(tmp_path).trials.is_empty()


def test_ranks_without_a_sample_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 ranks for 1 samples, each needs one"):
        refuse_impossible(trials(2, batch_sizes=[1]), None, lambda *_: None)


def test_the_number_of_ranks_is_part_of_the_identity():
    assert {t.identity for t in trials(1)}.isdisjoint(t.identity for t in trials(2))
    assert dict(trials(2)[0].training)["ranks"] == 2
    assert Trial.from_dict(trials(2)[0].to_dict()) == trials(2)[0]
    assert "ranks" not in dict(trials(1)[0].training)


@pytest.mark.slow
def test_torchrun_prints_one_result(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'datasets = ["digits:train=60,test=30"]\nmodels = ["mlp_relu"]\nnormalizers = ["batch", "group:num_groups=4"]\n'
        "batch_sizes = [20]\nepochs = 1\nseeds = 1\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "normsmith",
        "compare",
        str(recipe),
    ]
    options = ["--out", str(tmp_path / "out"), "--save", str(tmp_path / "report.json"), "--logger", "tensorboard", "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [trial["status"] for trial in json.loads(done.stdout)["trials"]] == ["finished", "finished"]
    assert done.stderr.count("written: ") == 1
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 2

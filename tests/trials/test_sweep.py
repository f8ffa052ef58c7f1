"""A sweep: what cannot run is refused before anything does, what is done is left, a search comes first."""

import json
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console
from trials.helpers_trials import SMALL, recipe

from normsmith.comparison.results import load
from normsmith.comparison.running import compare
from normsmith.errors import InputError, OptionError
from normsmith.trials.engines.inline import InlineEngine
from normsmith.trials.files import Folder
from normsmith.trials.live import Live, as_table
from normsmith.trials.sweep import Listener, device_of, sweep


def test_impossible_combinations_are_refused_all_together(tmp_path):
    wanted = recipe(models=["shallow_cnn:width=4", "mlp_relu"], normalizers=["batch", "instance", "layer"], batch_sizes=[1, 20])
    with pytest.raises(InputError) as caught:
        sweep(wanted, Folder(tmp_path), InlineEngine(), None, Listener())
    text = str(caught.value)
    assert "mlp_relu with batch at 1 samples a statistic: BatchNorm expects more than 1 value per channel" in text
    assert "shallow_cnn:width=4 with batch at 1" in text, "its last maps have one position"
    assert "with layer" not in text
    assert len(text.splitlines()) == 1 + 2 + 4
    assert not list(Folder(tmp_path).trials.iterdir())


def test_a_batch_of_one_with_positions_is_legal(tmp_path):
    wanted = recipe(models=["resnet20:width=4,depths=(1,1)"], normalizers=["batch"], batch_sizes=[1], epochs=None, steps=3)
    trials = sweep(wanted, Folder(tmp_path), InlineEngine(), None, Listener())
    assert load(tmp_path).trials["status"].to_list() == ["finished"] * len(trials)


def test_batches_larger_than_the_data(tmp_path):
    with pytest.raises(InputError, match="200 samples for a batch, the training set has 120"):
        sweep(recipe(batch_sizes=[200]), Folder(tmp_path), InlineEngine(), None, Listener())


def test_models_for_another_task(tmp_path):
    with pytest.raises(InputError, match="expects data for segmentation"):
        sweep(recipe(models=["unet"]), Folder(tmp_path), InlineEngine(), None, Listener())


class Counting(Listener):
    def __init__(self):
        self.stages, self.words = [], []

    def planned(self, trials, finished):
        self.stages.append((len(trials), len(finished)))

    def told(self, word):
        self.words.append(word)


def test_what_is_done_is_not_done_again_and_a_larger_recipe_adds(tmp_path):
    first, second, third = Counting(), Counting(), Counting()
    sweep(recipe(), Folder(tmp_path), InlineEngine(), None, first)
    sweep(recipe(), Folder(tmp_path), InlineEngine(), None, second)
    sweep(recipe(seeds=2), Folder(tmp_path), InlineEngine(), None, third)
    assert first.stages == [(2, 0)]
    assert second.stages == [(2, 2)]
    assert not second.words
    assert third.stages == [(4, 2)]


def test_without_resume_the_trials_of_the_recipe_are_run_anew_and_others_are_left(tmp_path):
    wanted, other = recipe(normalizers=["batch", "layer"]), recipe(normalizers=["rms"])
    for each in (wanted, other):
        compare(each, tmp_path, engine="inline", quiet=True)
    ended = dict(load(tmp_path).trials.select("identity", "ended").iter_rows())
    listener = Counting()
    with pytest.raises(InputError):
        sweep(recipe(batch_sizes=[200]), Folder(tmp_path), InlineEngine(), None, listener, resume=False)
    assert dict(load(tmp_path).trials.select("identity", "ended").iter_rows()) == ended, "refused, so nothing is forgotten"
    trials = sweep(wanted, Folder(tmp_path), InlineEngine(), None, listener, resume=False)
    assert listener.stages == [(len(trials), 0)]
    again = dict(load(tmp_path).trials.select("identity", "ended").iter_rows())
    assert again.keys() == ended.keys()
    assert {key for key in again if again[key] != ended[key]} == {trial.identity for trial in trials}


def test_a_search_of_learning_rates(tmp_path):
    counting = Counting()
    wanted = recipe(optimizers=[{"learning_rate": [1e-6, 0.05]}], seeds=2, normalizers=["batch"])
    trials = sweep(wanted, Folder(tmp_path), InlineEngine(), None, counting)
    assert counting.stages == [(2, 0), (2, 0)]
    assert {t.learning_rate for t in trials if not t.searching} == {0.05}
    found = load(tmp_path).trials
    assert found.filter(found["searching"]).height == 2
    assert set(found.filter(~found["searching"])["seed"]) == {0, 1}


def test_devices():
    assert device_of(recipe(training={"device": "cpu"})) == "cpu"
    with pytest.raises(OptionError, match="got 'gpu'"):
        device_of(recipe(training={"device": "gpu"}))


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("scenes:of=digits,train=8,test=4", "unet:width=4"),
        ("boxes:of=digits,train=8,test=4", "detector:width=4"),
        ("moving:of=digits,train=8,test=4", "clipnet:width=4"),
        ("digits:train=20,test=10", "lstm:width=8"),
    ],
)
def test_every_task(tmp_path, task, model):
    wanted = recipe(datasets=[task], models=[model], normalizers=["layer"], batch_sizes=[4], epochs=None, steps=2)
    sweep(wanted, Folder(tmp_path), InlineEngine(), None, Listener())
    (manifest,) = load(tmp_path).manifests.values()
    assert manifest["status"] == "finished", manifest.get("traceback")
    assert 0 <= manifest["accuracy"] <= 1


def test_compare_shows_how_far_it_is(tmp_path, capsys):
    result = compare(SMALL, tmp_path, engine="inline")
    said = capsys.readouterr()
    assert not said.out
    assert "2 trials" in said.err
    assert "2 of 2" in said.err
    assert {t["normalizer"] for t in result.trials} == {"batch", "group:num_groups=4"}
    compare({**SMALL, "seeds": 2}, tmp_path, engine="inline", quiet=True)
    assert not capsys.readouterr().err
    again = compare(SMALL, tmp_path, engine="inline", quiet=True)
    assert len(again.trials) == 2, "those of the recipe, not all in the folder"
    with pytest.raises(OptionError, match="got 'dask'"):
        compare(SMALL, tmp_path, engine="dask")


def test_bars_on_a_terminal(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with Live(console) as live:
        trials = sweep(recipe(epochs=30), Folder(tmp_path), InlineEngine(), None, live)
        shown = live.progress.tasks
        assert [task.description for task in shown if task.description == "all trials"] == ["all trials"]
        assert shown[-1].completed == len(trials)
        table = as_table(live.progress.scores)
    text = console.file.getvalue()
    assert "so far" in text
    assert table.row_count == 2
    assert [str(column.header).splitlines()[-1] for column in table.columns] == ["so far", "batch 20"]
    assert "trying combinations" in text
    assert "all trials" in text


def command(*arguments: str, folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "normsmith", *arguments], capture_output=True, text=True, cwd=folder, check=False
    )


def test_the_commands(tmp_path):
    text = command("compare", "--init", folder=tmp_path).stdout
    (tmp_path / "recipe.toml").write_text(
        text.replace('["digits"]', f'["{SMALL["datasets"][0]}"]')
        .replace("epochs = 3", "epochs = 1")
        .replace("seeds = 3", "seeds = 2")
    )
    done = command("compare", "recipe.toml", "--out", "runs", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "24 of 24" in done.stderr
    assert {path.name for path in (tmp_path / "runs").glob("report.*")} == {
        f"report.{kind}" for kind in ("csv", "html", "json", "md")
    }
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "<h1>Comparison: digits</h1>" in page
    assert 'href="report.json"' in page, "it is written before"
    found = json.loads(command("report", "runs", "--json", folder=tmp_path).stdout)
    assert len(found["trials"]) == 24
    for trial in found["trials"]:
        assert trial["status"] == "finished"
        assert 0 <= trial["accuracy"] <= 1
        assert trial["timing"]["seconds"] > 0
        assert {"identity", "dataset", "model", "normalizer", "batch", "seed"} <= trial.keys()
    wrong = command("report", "nowhere", folder=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    (tmp_path / "recipe.toml").write_text("normalizers = 3")
    wrong = command("compare", "recipe.toml", folder=tmp_path)
    assert wrong.returncode == 2
    assert "1 mistake" in wrong.stderr
    assert json.loads(command("compare", "--schema", folder=tmp_path).stdout)["title"] == "Recipe"


@pytest.mark.parametrize("package", ["polars", "pydantic", "scipy"])
def test_a_package_that_is_not_there(package):
    code = f"import sys; sys.modules[{package!r}] = None\nimport normsmith as ns\ntry: ns.compare\nexcept ns.DependencyError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"a comparison expects {package}: got none; pip install 'normsmith[compare]'\n"

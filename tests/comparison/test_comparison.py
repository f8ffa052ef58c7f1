"""What a comparison shows and writes."""

import csv
import json
import subprocess
import sys

import pytest
from comparison.helpers_results import fill, put

import normsmith as ns
from normsmith.comparison.comparison import Comparison
from normsmith.errors import OptionError, ResultsError
from normsmith.trials.files import Folder

LARGE = {"batch": [0.93, 0.94, 0.935], "group": [0.93, 0.935, 0.94], "layer": [0.92, 0.935, 0.92]}
SMALL = {"batch": [0.60, 0.62, 0.61], "group": [0.93, 0.94, 0.94], "layer": [0.93, 0.935, 0.92]}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "results"
    fill(path, LARGE)
    fill(path, SMALL, batch=2)
    put(path, "group", 3, None, status="crashed", batch=2)
    put(path, "layer", 3, 0.2, status="diverged", batch=2)
    put(path, "batch", 9, 0.5, dataset="usps", searching=True, learning_rate=0.3)
    return path


def test_the_text(folder):
    text = str(ns.Comparison.load(folder))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["digits,", "shallow_cnn"]
    assert lines[1] == ["batch", "2", "batch", "32"]
    assert ["batch", "61.0", "±", "1.0†", "93.5", "±", "0.5"] in lines
    assert ["baseline", "baseline"] in lines
    assert ["60.0", "62.0", "61.0", "93.0", "94.0", "93.5"] in lines, "every seed"
    assert any(line[:2] == ["layer", "74.6"] and "36.4†‡" not in line and "36.4‡" in line for line in lines)
    assert "+32.7 (+31.2 to +34.1) *" in text
    assert "batch suffers at batch 2" in text
    assert "note: 1 trial left out, crashed: RuntimeError: boom" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "12 ms a step, ×1.20" in text
    assert "10 ms a step " in text, "the baseline is not beside itself"
    assert "\u00a0" not in text


def test_the_data(folder):
    comparison = Comparison.load(folder)
    data = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["baseline"] == "batch"
    assert len(data["trials"]) == 20
    for trial in data["trials"]:
        assert {"identity", "status", "accuracy", "timing", "dataset", "model", "normalizer", "batch", "seed"} <= set(trial)
        assert isinstance(trial["accuracy"], float) == (trial["status"] != "crashed")
        assert ("seconds" in trial["timing"]) == (trial["status"] != "crashed")
    assert [t["seed"] for t in data["searched"]] == [9], "judged on other data, so apart"
    first = data["settings"][0]
    assert {"ranking", "differences", "verdict"} == set(first)
    assert first["ranking"][0]["setting"]["batch"] == 2
    assert {"normalizer", "mean", "interval", "bootstrap", "p", "corrected", "clear", "detectable", "needed", "by_seed"} <= set(
        first["differences"][0]
    )
    assert first["differences"][0]["by_seed"]["0"] == pytest.approx(0.33)
    assert data["verdict"] == list(comparison.verdict)
    assert data["notes"] == list(comparison.notes)


def test_nothing_that_is_no_number_gets_into_the_data(tmp_path):
    fill(tmp_path, LARGE)
    put(tmp_path, "rms", 0, float("nan"), status="diverged")
    trial = next(t for t in Comparison.load(tmp_path).to_dict()["trials"] if t["normalizer"] == "rms")
    assert trial["accuracy"] is None
    json.dumps(Comparison.load(tmp_path).to_dict(), allow_nan=False)


def test_the_table(folder):
    comparison = Comparison.load(folder)
    assert len(comparison.table) == 6
    frame = comparison.to_pandas()
    assert frame[(frame.normalizer == "group") & (frame.batch == 2)].clear.item() is True
    assert comparison.to_polars().columns == list(comparison.table[0])
    assert comparison.to_polars().height == 6


def test_files(folder, tmp_path):
    comparison = Comparison.load(folder)
    assert json.loads(comparison.save(tmp_path / "r.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))
    rows = list(csv.DictReader(comparison.save(tmp_path / "r.csv").read_text().splitlines()))
    assert [row["normalizer"] for row in rows] == [record["normalizer"] for record in comparison.table]
    assert rows[0]["accuracies"].startswith("0:")
    assert comparison.save(tmp_path / "r.txt").read_text() == f"{comparison}\n"
    markdown = comparison.save(tmp_path / "r.md").read_text()
    assert "| batch | 61.0 ± 1.0†<br>baseline" in markdown
    assert "0: 60.00<br>1: 62.00<br>2: 61.00" in markdown, "every seed"
    for line in comparison.verdict:
        assert f"- {line}" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in tables} == {2}
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(OptionError, match=r"ends in \.html, \.json, \.md, \.csv, \.txt: got 'r.pdf'"):
        comparison.save(tmp_path / "r.pdf")
    with pytest.raises(ResultsError, match="expected to take results"):
        comparison.save(tmp_path / "nowhere" / "r.json")


def test_names_that_tables_could_misread(tmp_path):
    fill(tmp_path, {"[bold]a|b*c*": [0.9, 0.91], "batch": [0.8, 0.82]})
    comparison = Comparison.load(tmp_path)
    assert any(line.startswith("  [bold]a|b*c*  90.5 ±") for line in str(comparison).splitlines())
    assert "[bold]a\\|b\\*c\\*" in comparison.to_markdown()


def test_the_baseline(folder):
    other = Comparison.load(folder, baseline="layer")
    assert other.statistics.baseline == "layer"
    assert str(other).splitlines()[2].split()[0] == "layer", "the baseline is the first row"
    assert str(other).splitlines()[5].split()[0] == "group", "then the best"
    with pytest.raises(OptionError, match="baseline among the normalizers batch, group, layer: got 'grop'"):
        Comparison.load(folder, baseline="grop")
    recipe = {"normalizers": [{"head": "layer", "rest": None}, "group"], "baseline": "group"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    comparison = Comparison.load(folder)
    assert comparison.recipe == recipe
    assert comparison.to_dict()["recipe"] == recipe
    assert comparison.statistics.baseline == "group"
    (folder / "recipe.json").write_text(json.dumps({"normalizers": ["layer"], "baseline": None}))
    assert Comparison.load(folder).statistics.baseline == "layer", "the first"
    (folder / "recipe.json").write_text(json.dumps({"normalizers": ["ghost"]}))
    assert Comparison.load(folder).statistics.baseline == "batch", "as the recipe's did not run"
    (folder / "recipe.json").write_text("{")
    assert Folder(folder).recipe() is None


def test_without_batch_norm_what_there_is_most_of_is_the_baseline(tmp_path):
    fill(tmp_path, {"group": [0.9, 0.91], "layer": [0.8, 0.82, 0.83]})
    assert Comparison.load(tmp_path).statistics.baseline == "layer"


def test_families_are_named_by_what_differs(tmp_path):
    fill(tmp_path, LARGE)
    fill(tmp_path, LARGE, weight_decay=0.0)
    fill(tmp_path, LARGE, training={"amp": True, "threads": 1, "record": [], "device": "cpu"})
    heads = [line for line in str(Comparison.load(tmp_path)).splitlines() if line.startswith("digits") and ":" not in line]
    assert sorted(heads) == [
        "digits, shallow_cnn, training.amp False, weight_decay 0.0",
        "digits, shallow_cnn, training.amp False, weight_decay 0.0005",
        "digits, shallow_cnn, training.amp True, weight_decay 0.0005",
    ]


def test_wins_are_shown_where_there_are_several_settings_of_a_size(tmp_path):
    fill(tmp_path, SMALL)
    assert "won / lost / neither" not in str(Comparison.load(tmp_path))
    fill(tmp_path, SMALL, dataset="mnist")
    lines = [line.split() for line in str(Comparison.load(tmp_path)).splitlines()]
    assert ["group", "2", "/", "0", "/", "0"] in lines


def test_many_seeds_are_a_range_in_the_cell_and_all_in_the_file(tmp_path):
    fill(tmp_path, {"batch": [0.9 + seed / 1000 for seed in range(8)], "group": [0.95] * 8})
    comparison = Comparison.load(tmp_path)
    assert "90.0 to 90.7" in str(comparison)
    assert "7: 90.70" in comparison.to_markdown()


def test_a_report_needs_no_torch(folder):
    code = (
        "import sys\n"
        "from normsmith.comparison.comparison import Comparison\n"
        "print(Comparison.load(sys.argv[1]))\n"
        "assert not {'torch', 'numba', 'pandas', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{Comparison.load(folder)}\n", "the same every time"

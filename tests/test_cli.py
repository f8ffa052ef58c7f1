"""The command, as a user calls it."""

import csv
import json
import subprocess
import sys

import pytest

import normsmith as ns
from normsmith.commands.methods import show


def call(*arguments, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "normsmith", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_list_names_every_method():
    printed = call("list").stdout
    for name, entry in ns.catalog().items():
        assert name in printed
        assert f"ns.{entry.class_name}" in printed


def test_list_as_json_has_the_traits():
    entries = json.loads(call("list", "--json").stdout)
    assert [e["name"] for e in entries] == list(ns.catalog())
    assert {e["name"]: e["batch_dependent"] for e in entries} == {n: e.batch_dependent for n, e in ns.catalog().items()}


def test_show_prints_the_card():
    assert ns.catalog()["group"].card() in call("show", "group").stdout


@pytest.mark.parametrize("name", ns.catalog())
def test_every_card_is_printed(name, capsys):
    show(name)
    printed = capsys.readouterr().out
    assert ns.catalog()[name].card() in printed
    assert "Leaves the output unchanged" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "grup"], "did you mean 'group'"),
        (["bench", "--shapes", "32y64"], "a shape is expected"),
        (["bench", "--layouts", "diagonal"], "among rows, columns"),
        (["bench", "--modes", "sideways"], "among forward"),
        (["bench", "--backend", "abacus"], "among auto"),
        (["bench", "--rounds", "0"], "at least one round"),
        (["bench", "--methods", "btach"], "did you mean 'batch'"),
    ],
)
def test_bad_input_is_one_sentence_and_a_failure(arguments, sentence):
    error = call(*arguments, code=2).stderr
    assert sentence in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_bench_measures_prints_and_saves(tmp_path):
    size = [
        "--shapes",
        "4x6x5x5",
        "--layouts",
        "rows",
        "--modes",
        "forward",
        "--rounds",
        "1",
        "--no-network",
        "--device",
        "cpu",
        "--save",
        str(tmp_path),
    ]
    assert "4×6×5×5" in call("bench", "--methods", "batch", *size).stdout
    printed = json.loads(call("bench", "--methods", "group", "--methods", "rms", *size, "--json").stdout)
    assert [row["method"] for row in printed["rows"]] == ["group", "rms"]
    with (tmp_path / "cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["batch", "group", "rms"]
    assert all(row["machine"] and row["torch"] and row["commit"] and row["date"] for row in rows)
    assert all(float(row["to_oracle"]) > 0 for row in rows)
    assert rows[2]["to_torch"] == ""
    assert {row["allocator"] for row in rows} == {"keeps pages"}


NETS = """
import torch
from torch import nn

def batches(number=6):
    return [(torch.randn(16, 3, 8, 8) + 1, None) for _ in range(number)]

def net(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4))
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return f"{path}:net"


def test_convert_prints_the_table_of_a_dry_run(nets):
    printed = call("convert", nets, "--to", "group:num_groups=2", "--dry-run", "--example", "2x3x8x8").stdout
    assert "2 layers converted; error of the model's output" in printed
    assert "BatchNorm2d → GroupNorm" in printed


def test_convert_by_parts_as_json(nets):
    arguments = ["--to", "1=switchable", "--to", "re:4=none", "--dry-run", "--json"]
    report = json.loads(call("convert", nets, *arguments).stdout)
    assert [(row["layer"], row["new"]) for row in report["layers"]] == [("1", "SwitchableNorm")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "group"], "ns.convert(model, 'group')"),
        (["--to", "gruop", "--dry-run"], "did you mean 'group'"),
        (["--to", "group", "--to", "batch", "--dry-run"], "PART=METHOD"),
        (["--to", "group", "--dry-run", "--example", "three"], "2x3x224x224"),
        (["--to", "group", "--dry-run", "--example", "2x5x8x8"], "(2, 5, 8, 8)"),
        (["--to", "2=group", "--dry-run"], "none of 2"),
    ],
)
def test_convert_says_what_is_wrong(nets, arguments, says):
    error = call("convert", nets, *arguments, code=2).stderr
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_examine_finds_evidence_and_cure(nets, tmp_path):
    loader = nets.replace(":net", ":batches(number=5)")
    printed = call("examine", nets, "--loader", loader).stdout
    assert "error NS101: running statistics were never updated" in printed
    assert "cure: ns.recalibrate(model, loader)" in printed
    path = tmp_path / "exam.sarif"
    done = call("examine", nets, "--loader", loader, "--json", "--save", str(path), "--fail-on", "error", code=1)
    assert json.loads(done.stdout)["batches"] == 5
    assert json.loads(path.read_text())["runs"][0]["results"][0]["ruleId"] == "NS101"
    page = tmp_path / "exam.html"
    call("examine", nets, "--loader", loader, "--save", str(page))
    assert "running statistics were never updated" in page.read_text().replace("Running", "running")


@pytest.mark.parametrize(
    ("loader", "says"),
    [("batches(number=0)", "at least one batch"), ("net(3, 4)", "raised TypeError"), ("nothing", "got no such name")],
)
def test_examine_says_what_is_wrong(nets, loader, says):
    error = call("examine", nets, "--loader", nets.replace(":net", f":{loader}"), code=2).stderr
    assert says in error
    assert len(error.strip().splitlines()) == 1


LABELLED = """

def pairs():
    return [(torch.randn(16, 3), torch.randint(0, 4, (16,))) for _ in range(8)]

def classifier():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    for x, _ in pairs():
        model(x)
    return model
"""


@pytest.fixture
def classifier(nets):
    path = nets.removesuffix(":net")
    with open(path, "a") as file:  # noqa: PTH123
        file.write(LABELLED)
    return path


def test_examine_looks_closer_and_recommends(classifier):
    arguments = ["examine", f"{classifier}:classifier", "--loader", f"{classifier}:pairs", "--budget", "60"]
    data = json.loads(call(*arguments, "--depth", "full", "--json").stdout)
    assert data["layers"][0]["gradient ratio"] > 0
    assert data["whole"]["loss by running statistics"] > 0
    printed = call(*arguments, "--recommend", "batch=4,batch_independent=true", "--train-steps", "2").stdout
    assert "Sequential at batches of 4: the loss after 2 steps" in printed
    assert "batch: ruled out" in printed


def test_examine_without_arguments_shows_planted_faults(tmp_path):
    pytest.importorskip("sklearn")
    path = tmp_path / "exam.json"
    printed = " ".join(call("examine", "--save", str(path), "--fail-on", "warning", code=1).stdout.split())
    for code in ("NS102", "NS104", "NS207"):
        assert f"found: warning {code}" in printed
        assert f"warning {code}:" in printed
    assert {f["code"] for f in json.loads(path.read_text())["findings"]} >= {"NS102", "NS104", "NS207"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--loader", "a:b"], "a model with --loader: got none"),
        (["a:b"], "--loader or --data, where batches are from: got neither"),
        (["--train-steps", "3"], "--train-steps with --recommend"),
        (["--recommend", "batch"], "batch=2,max_slowdown=1.5"),
        (["--budget", "3", "PAIR"], "leave it out"),
        (["--recommend", "bacth=2", "PAIR"], "did you mean 'batch'"),
    ],
)
def test_examine_says_what_is_missing(classifier, arguments, says):
    pair = [f"{classifier}:classifier", "--loader", f"{classifier}:pairs"]
    given = [part for argument in arguments for part in (pair if argument == "PAIR" else [argument])]
    error = call("examine", *given, code=2).stderr
    assert says in error
    assert len(error.strip().splitlines()) == 1

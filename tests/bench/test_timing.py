import csv
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import normsmith as ns
from normsmith.bench import network, record
from normsmith.bench.subjects import Subject, contestants, parse_shape, subjects
from normsmith.bench.timing import Times, interleave, interval, peak_bytes

ORACLES = Path(__file__).parent.parent / "oracles"


def test_the_ratio_is_paired():
    times = Times({"a": [1.0, 20.0, 3.0], "b": [2.0, 40.0, 6.0]})
    assert times.ratio("a", "b") == 0.5
    assert times.median("a") == 3.0


def test_every_contestant_runs_in_every_round():
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    times = interleave({"a": lambda: count("a"), "b": lambda: count("b")}, rounds=3, warmup=1)
    assert len(times.seconds["a"]) == len(times.seconds["b"]) == 3
    assert calls["a"] >= 5


def test_the_interval_holds_the_median():
    low, high = interval([1.0, 2.0, 3.0, 4.0, 100.0] * 5)
    assert 1 <= low <= 3 <= high <= 100


def test_peak_memory_is_that_of_the_allocator():
    assert peak_bytes(lambda: torch.empty(1000, 1000)) == 4_000_000


@pytest.mark.parametrize("method", ns.catalog())
@pytest.mark.parametrize("mode", ["forward", "forward+backward", "eval"])
def test_every_contestant_of_every_method_runs(method, mode):
    runs = contestants(Subject(method, (3, 6, 4, 5), "columns", mode), ORACLES, "auto")
    assert {"ours", "batch", "oracle", "copy"} <= set(runs)
    for run in runs.values():
        run()


def test_subjects_leave_out_what_a_method_refuses():
    found = subjects(["batch", "instance"], [(8, 5), (2, 5, 3, 3)], ["rows", "columns"], ["eval"])
    assert [(s.method, s.layout) for s in found if len(s.shape) == 2] == [("batch", "columns")]
    assert len([s for s in found if len(s.shape) == 4]) == 4
    assert found[-1].example().is_contiguous(memory_format=torch.channels_last)


def test_parse_shape():
    assert parse_shape("2x3x4") == parse_shape("2×3×4") == (2, 3, 4)
    for wrong in ("7", "2x0", "axb", "1x2x3x4x5x6"):
        with pytest.raises(ns.OptionError):
            parse_shape(wrong)


def test_rows_are_appended_and_none_is_lost(tmp_path):
    @dataclass
    class Row:
        value: float | None

    path = tmp_path / "new" / "rows.csv"
    record.append(path, [Row(1.0), Row(None)])
    record.append(path, [Row(2.5)])
    with path.open() as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["1", "", "2.5"]
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_network_cost(monkeypatch):
    for name, value in {"DEPTH": 2, "CHANNELS": 4, "BATCH": 2, "SIZE": 6}.items():
        monkeypatch.setattr(network, name, value)
    rows = network.measure(["batch", "adain"], rounds=2, layout="columns")
    assert [row.method for row in rows] == ["batch", "adain"]
    assert all(row.low <= row.to_batch <= row.high for row in rows)

import csv
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import normsmith as ns
from normsmith.bench import network, record, rivals, session, suite, tables, timing
from normsmith.bench import subjects as subjects_room
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


def test_a_contestant_without_memory_drops_out_if_it_may():
    def fails():
        raise torch.OutOfMemoryError

    times = interleave({"a": lambda: None, "b": fails}, rounds=2, dispensable={"b"})
    assert list(times.seconds) == ["a"]
    with pytest.raises(torch.OutOfMemoryError):
        interleave({"a": lambda: None, "b": fails}, rounds=2, dispensable={"a"})


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


class _Event:
    """Stands in for an event of CUDA."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = _Event.clock

    def synchronize(self):
        """Nothing to wait for."""

    def elapsed_time(self, end):
        return end.at - self.at


def test_a_gpu_tells_its_own_time(monkeypatch):
    """In milliseconds, between events: a run of 6 of them counts as 6e-3 seconds, however many there are."""
    monkeypatch.setattr(torch.cuda, "Event", _Event)

    def run():
        _Event.clock += 6

    times = interleave({"a": run}, rounds=2, device="cuda")
    assert times.seconds["a"] == pytest.approx([6e-3, 6e-3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_a_gpu(dtype, monkeypatch, tmp_path):
    """With its contestants, all of them on the CPU instead: there is one for the formula compiled, one for each package there is."""
    monkeypatch.setattr(subjects_room, "rivals", lambda method, shape, ours: {"liger": torch.nn.Identity()})
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    monkeypatch.setattr(Subject, "example", lambda self: torch.randn(self.shape, dtype=subjects_room.DTYPES[self.dtype]))
    for name in ("clock_of", "peak_bytes"):
        real = getattr(timing, name)
        monkeypatch.setattr(suite if name == "peak_bytes" else timing, name, lambda *given, real=real: real(*given[:-1], "cpu"))
    row = suite.measure(Subject("layer", (6, 8), "columns", "forward+backward", "cuda", dtype), 1, ORACLES)
    assert row.dtype == dtype
    assert row.to_liger is not None
    assert row.to_compiled is not None
    assert row.to_apex is row.to_timm is None
    assert tables.cells(row)[3] == f"forward+backward, {dtype}"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    record.append(tmp_path / "gpu.csv", [row], "cuda")
    with (tmp_path / "gpu.csv").open() as file:
        (saved,) = csv.DictReader(file)
    assert saved["machine"].startswith("a GPU, ")
    assert (saved["dtype"], saved["to_apex"]) == (dtype, "")


def test_other_packages_are_asked_only_where_they_are_there(monkeypatch):
    class Norm:
        def __init__(self, *sizes):
            self.sizes = sizes

    room = types.SimpleNamespace(FusedLayerNorm=Norm, LigerLayerNorm=Norm, GroupNorm=Norm)
    for name in ("apex.normalization", "apex.contrib.group_norm", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, room)
    layer, group = ns.LayerNorm(8), ns.GroupNorm(8, num_groups=2)
    assert {name: norm.sizes for name, norm in rivals.rivals("layer", (6, 8), layer).items()} == {"apex": (8,), "liger": (8,)}
    assert rivals.rivals("group", (2, 8, 3, 3), group)["apex"].sizes == (2, 8)
    assert rivals.rivals("layer", (2, 8, 3, 3), layer) == rivals.rivals("batch", (6, 8), layer) == {}
    assert rivals.rivals("rms", (6, 8), ns.RMSNorm(8)) == {}, "these have none of it"


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert session._device("auto") == session._device("cpu") == "cpu"
    with pytest.raises(ns.OptionError, match="torch sees none"):
        session._device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert session._device("auto") == "cuda"


def test_types_are_those_that_rows_tell_apart():
    assert session._kinds(None, "cpu") == session._kinds(["float32"], "cpu") == ["float32"]
    assert session._kinds(None, "cuda") == ["float32", "bfloat16"]
    assert session._kinds(["float16"], "cuda") == ["float16"]
    for wanted, device in ((["bfloat16"], "cpu"), (["int8"], "cuda")):
        with pytest.raises(ns.OptionError, match="bench expects"):
            session._kinds(wanted, device)

"""Folders as they are found: interrupted, copied in part, twice; each says in one sentence what is not there."""

import json

import pytest
from comparison.helpers_results import fill, put

from normsmith.comparison.comparison import Comparison
from normsmith.comparison.results import load
from normsmith.errors import OptionError, ResultsError
from normsmith.trials.files import Folder

SCORES = {"batch": [0.90, 0.91, 0.92], "group": [0.93, 0.95, 0.96]}


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "a", SCORES)
    return tmp_path / "a"


def test_all_there(folder):
    results = load(folder)
    assert results.notes == ()
    assert len(results.trials) == 6
    assert set(results.trials["normalizer"]) == {"batch", "group"}
    records = results.records("accuracy")
    assert records.height == 18
    assert set(records["identity"]) == set(results.trials["identity"])


def test_interrupted(folder):
    trial = Folder(folder)
    (trial.running / "0123456789.pt").write_bytes(b"half a checkpoint")
    (trial.running / "aaaa.lock").touch()
    results = load(folder)
    assert len(results.trials) == 6
    [note] = results.notes
    assert note.startswith("1 trial is not finished in ")
    assert "normsmith compare goes on" in note


def test_of_a_part_only_what_belongs_to_it_is_missed(folder):
    trial = Folder(folder)
    (trial.running / "0123456789.pt").write_bytes(b"of another recipe")
    wanted = load(folder).trials["identity"].to_list()[:4]
    results = load(folder, only=wanted)
    assert sorted(results.trials["identity"]) == sorted(wanted)
    assert results.notes == ()


def _drop(path):
    path.with_suffix(".parquet").unlink()


def _cut_records(path):
    path.with_suffix(".parquet").write_bytes(path.with_suffix(".parquet").read_bytes()[:-7])


def _zero_records(path):
    records = path.with_suffix(".parquet")
    records.write_bytes(b"\0" * records.stat().st_size)


def _cut_manifest(path):
    path.write_bytes(path.read_bytes()[:-20])


def _foreign(path):
    path.write_text('["a", "list"]')


def _no_trial(path):
    path.write_text('{"schema": 1, "trial": null}')


def _no_records(path):
    manifest = json.loads(path.read_text())
    del manifest["records"]
    path.write_text(json.dumps(manifest))


def _newer(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))


FAULTS = {
    _drop: "is missing",
    _cut_records: "bytes of",
    _zero_records: "is not what was written",
    _cut_manifest: "is not whole",
    _foreign: "is no manifest",
    _no_trial: "is no manifest",
    _no_records: "does not say what its records are",
    _newer: "another version",
}


@pytest.mark.parametrize("spoil", FAULTS)
def test_copied_in_part(folder, spoil):
    path = min(Folder(folder).trials.glob("*.json"))
    spoil(path)
    results = load(folder)
    assert len(results.trials) == 5
    [note] = results.notes
    assert FAULTS[spoil] in note
    assert path.name in note
    assert "\n" not in note
    assert results.records("accuracy").height == 15, "the others are read as ever"
    comparison = Comparison.load(folder)
    assert note in comparison.notes
    assert any("1 trial left out, not there" in n for n in comparison.notes), "the missing seed is named"
    assert note.split("/")[0] in str(comparison)


def test_records_without_a_manifest(folder):
    min(Folder(folder).trials.glob("*.json")).unlink()
    [note] = load(folder).notes
    assert note.startswith("1 trial is not finished")


def test_two_folders_with_trials_in_common(folder, tmp_path):
    other = tmp_path / "b"
    fill(other, {"batch": SCORES["batch"], "layer": [0.8, 0.81, 0.82]})
    results = load(folder, other)
    assert len(results.trials) == 9
    assert results.trials["identity"].n_unique() == 9
    assert results.notes == ()
    assert Comparison.load(other, folder).to_dict()["settings"] == Comparison.load(folder, other).to_dict()["settings"]


def test_what_is_broken_here_is_taken_from_there(folder, tmp_path):
    other = tmp_path / "b"
    fill(other, SCORES)
    for path in Folder(folder).trials.glob("*.parquet"):
        path.unlink()
    results = load(folder, other)
    assert len(results.trials) == 6
    assert results.notes == ()


def test_what_was_interrupted_here_and_finished_there_is_not_missed(folder, tmp_path):
    identity = put(tmp_path / "b", "layer", 0, 0.9)
    (Folder(folder).running / f"{identity}.pt").touch()
    assert load(folder, tmp_path / "b").notes == ()


def test_nothing_there(tmp_path):
    with pytest.raises(ResultsError, match="which is not there; normsmith compare makes one"):
        Comparison.load(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="at least one finished trial is expected: got none in") as caught:
        Comparison.load(tmp_path)
    assert "\n" not in str(caught.value)
    Folder(tmp_path).prepare()
    (tmp_path / "running" / "abc.pt").touch()
    with pytest.raises(ResultsError, match="1 trial is not finished"):
        Comparison.load(tmp_path)
    with pytest.raises(OptionError, match="one folder of results or more: got none"):
        Comparison.load()


def test_other_versions_of_the_source_are_told(folder):
    put(folder, "layer", 0, 0.9, source="2")
    [note] = load(folder).notes
    assert note == "trials of 2 versions of the source stand side by side: 1, 2"

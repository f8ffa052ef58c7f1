"""The folder of results when things go wrong."""

import errno
import os
from pathlib import Path

import pytest
import torch
from trials.helpers_trials import records, trials
from trials.test_training import stop_after_an_epoch

from normsmith.errors import ResultsError
from normsmith.trials.files import Folder, write_whole
from normsmith.trials.trial import run_trial


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_is_finished(tmp_path, monkeypatch):
    folder = Folder(tmp_path)
    one, two = trials()
    run_trial(one, folder)
    kept = {path: path.read_bytes() for path in folder.trials.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("normsmith.writing.os.replace", full)
        with pytest.raises(ResultsError, match="No space left on device; what is finished there is intact"):
            run_trial(two, folder)
    assert {path: path.read_bytes() for path in folder.trials.iterdir()} == kept
    assert not list(tmp_path.rglob("*.part")), "nothing half written is left"
    assert run_trial(two, folder) == "finished"


def test_torch_cannot_write(tmp_path):
    def broken(_: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore")

    with pytest.raises(ResultsError, match=r"file write failed$"):
        write_whole(tmp_path / "x.pt", broken)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b""), Path.unlink])
def test_a_checkpoint_that_cannot_be_read_means_to_start_anew(tmp_path, spoil):
    whole, broken = Folder(tmp_path / "whole"), Folder(tmp_path / "broken")
    trial = trials()[0]
    run_trial(trial, whole)
    stop_after_an_epoch(trial, broken)
    spoil(broken.running / f"{trial.identity}.pt")
    assert run_trial(trial, broken) == "finished"
    assert records(whole, trial) == records(broken, trial)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/pwned",)

    folder, trial = Folder(tmp_path), trials()[0]
    folder.prepare()
    torch.save({"model": Hostile()}, folder.running / f"{trial.identity}.pt")
    assert run_trial(trial, folder) == "finished"
    assert not (tmp_path / "pwned").exists()


def test_a_manifest_without_its_records_is_no_result(tmp_path):
    folder, trial = Folder(tmp_path), trials()[0]
    run_trial(trial, folder)
    path = folder.trials / f"{trial.identity}.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert folder.manifest(trial.identity) is None
    assert run_trial(trial, folder) == "finished"
    assert folder.manifest(trial.identity) is not None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="is expected to take results: got Not a directory"):
        Folder(tmp_path / "file" / "out").prepare()


def test_weights_that_were_not_kept(tmp_path):
    with pytest.raises(ResultsError, match="say keep_weights = true"):
        Folder(tmp_path).load_weights("0")

"""A cluster of this machine: the same results as without, a worker that is killed, and clusters that are not there."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn
from trials.helpers_trials import records, trials

from normsmith.errors import BackendError, OptionError, ResultsError
from normsmith.trials.engines import Errand
from normsmith.trials.engines.inline import InlineEngine
from normsmith.trials.engines.ray import RayEngine
from normsmith.trials.files import Folder
from normsmith.trials.trial import Word

HERE = Path(__file__)


def deadly(marks: str, forwards: int) -> nn.Module:
    """A model whose process is killed after so many forwards, and leaves a mark; not where SAFE is set."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    left = iter(range(forwards))

    def fall(*_: object) -> None:
        if next(left, None) is None and "SAFE" not in os.environ:
            (Path(marks) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(fall)
    return model


@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives_and_a_killed_worker_is_made_up_for(tmp_path, monkeypatch):
    """One cluster for all of it, as it takes seconds to start."""
    for name in ("some", "many"):
        (tmp_path / name).mkdir()
    plain = trials(seeds=2)
    # An epoch has 6 steps and one forward of evaluation, so the first falls in its second epoch, then in its third, and then comes to its
    # end, if each time it goes on from its checkpoint. The second never ends an epoch.
    killed, hopeless = (
        trials(models=[f"{HERE}:deadly({str(tmp_path / name)!r}, {forwards})"], normalizers=["batch"])[0]
        for name, forwards in (("some", 10), ("many", 3))
    )
    words: list[Word] = []
    cluster, alone = Folder(tmp_path / "ray"), Folder(tmp_path / "one")
    RayEngine(workers=2).run(Errand([*plain, killed, hopeless], cluster, None, words.append))
    monkeypatch.setenv("SAFE", "1")
    InlineEngine().run(Errand([*plain, killed], alone, None, lambda _: None))
    for trial in (*plain, killed):
        assert cluster.manifest(trial.identity)["status"] == "finished", cluster.manifest(trial.identity)
        assert repr(records(cluster, trial)) == repr(records(alone, trial))  # to the bit, and a NaN is a NaN
        assert cluster.manifest(trial.identity)["accuracy"] == alone.manifest(trial.identity)["accuracy"]
    assert [len(list((tmp_path / name).iterdir())) for name in ("some", "many")] == [2, 3]
    lost = cluster.manifest(hopeless.identity)
    assert (lost["status"], lost["error"]) == ("crashed", "its worker was lost 3 times: WorkerCrashedError")
    ended = {word.identity: word.status for word in words if word.status != "running"}
    assert ended == {**{trial.identity: "finished" for trial in (*plain, killed)}, hopeless.identity: "crashed"}


@pytest.mark.slow
def test_a_folder_that_takes_no_results_is_one_sentence(tmp_path):
    folder = Folder(tmp_path / "results")
    folder.path.mkdir()
    folder.trials.touch()  # a file where a folder is wanted, as permissions do not keep root away
    with pytest.raises(ResultsError, match="is expected to take results"):
        RayEngine().run(Errand(trials(), folder, None, lambda _: None))


def test_the_driver_ends_with_whoever_started_it():
    driver = subprocess.run(
        [sys.executable, "-m", "normsmith.trials.engines.ray_driver"], input=b"", capture_output=True, check=False, timeout=60
    )
    assert driver.returncode != 0


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    errand = Errand(trials(), Folder(tmp_path), None, lambda _: None)
    with pytest.raises(BackendError, match=f"expects a cluster at '{address}': got no answer"):
        RayEngine(address).run(errand)


def test_a_port_that_does_not_answer_is_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("normsmith.trials.engines.ray._START", 4.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(BackendError, match=f"that answers at '{address}': got no answer in 4 seconds"):
            RayEngine(address).run(Errand(trials(), Folder(tmp_path), None, lambda _: None))


@pytest.mark.slow
def test_no_cluster_to_join_is_one_sentence(tmp_path):
    with pytest.raises(
        BackendError, match=r"engine='ray' expects a cluster at 'auto': Could not find any running Ray instance"
    ):
        RayEngine("auto").run(Errand(trials(), Folder(tmp_path), None, lambda _: None))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"address": "somewhere"}, "as auto, HOST:PORT or ray://HOST:PORT: got 'somewhere'"),
        ({"workers": 0}, "as a positive integer: got 0"),
    ],
)
def test_options_that_cannot_work(options, sentence):
    with pytest.raises(OptionError, match=sentence):
        RayEngine(**options)


def test_which_gpu_is_for_ray_to_choose(tmp_path):
    trial = trials()[0]
    trial = replace(trial, training=tuple({**dict(trial.training), "device": "cuda:1"}.items()))
    with pytest.raises(OptionError, match="Ray chooses which: got 'cuda:1'"):
        RayEngine().run(Errand([trial], Folder(tmp_path), None, lambda _: None))

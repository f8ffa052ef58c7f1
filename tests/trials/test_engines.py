"""Engines give the same results, and outlive their workers."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from trials.helpers_trials import records, trials

from normsmith.errors import OptionError, ResultsError
from normsmith.trials.engines import Errand
from normsmith.trials.engines.inline import InlineEngine
from normsmith.trials.engines.local import LocalEngine
from normsmith.trials.files import Folder

NET = """
import os, signal
from pathlib import Path
from torch import nn
class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.n, self.f, self.how, self.calls = nn.BatchNorm2d(1), nn.Linear(64, 10), how, 0
    def forward(self, x):
        self.calls += 1
        mark = Path(__file__).with_suffix(".mark")
        if self.calls == 10 and (self.how == "always" or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        print("a model may print")
        return self.f(self.n(x).flatten(1))
"""


def run(engine, folder, chosen):
    folder.prepare()
    words = []
    engine.run(Errand(chosen, folder, None, words.append))
    return words


def test_local_and_inline_give_the_same_bits(tmp_path):
    chosen = trials(seeds=2)
    one, two = Folder(tmp_path / "one"), Folder(tmp_path / "two")
    said = run(LocalEngine(2), one, chosen)
    run(InlineEngine(), two, chosen)
    for trial in chosen:
        assert one.manifest(trial.identity)["status"] == "finished"
        assert records(one, trial) == records(two, trial)
    assert {w.identity for w in said if w.status == "finished"} == {t.identity for t in chosen}
    assert all(w.score is not None for w in said if w.status == "finished")


@pytest.mark.parametrize("how", ["once", pytest.param("always", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed(tmp_path, how):
    (tmp_path / "net.py").write_text(NET)
    chosen = trials(models=[f"{tmp_path}/net.py:Net('{how}')"], normalizers=["batch"], epochs=4)
    folder = Folder(tmp_path / "out")
    run(LocalEngine(1), folder, chosen)
    manifest = folder.manifest(chosen[0].identity)
    assert manifest["status"] == ("finished" if how == "once" else "crashed")
    if how == "always":
        assert "status -9, 3 times" in manifest["error"]
    else:
        assert manifest["steps"] == 24


def test_results_that_cannot_be_written(tmp_path):
    folder = Folder(tmp_path / "out")
    folder.prepare()
    folder.trials.rmdir()
    folder.trials.touch()
    with pytest.raises(ResultsError, match="is expected to take results"):
        LocalEngine(1).run(Errand(trials()[:1], folder, None, lambda _: None))


def test_an_interrupt_ends_the_workers(tmp_path):
    folder = Folder(tmp_path)
    folder.prepare()
    chosen = trials(epochs=500, normalizers=["batch"])
    started: list[int] = []

    def tell(word):
        if not started:
            started.append(word.step)
            threading.Thread(target=lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.SIGINT))).start()

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(1).run(Errand(chosen, folder, None, tell))
    time.sleep(0.5)
    mine = str(os.getpid())
    children = [p for p in Path("/proc").glob("[0-9]*") if _parent(p) == mine and "compare.engines" in _command(p)]
    assert not children
    assert folder.checkpoint(chosen[0].identity) is not None


def _parent(process: Path) -> str:
    try:
        return next(line.split()[1] for line in (process / "status").read_text().splitlines() if line.startswith("PPid"))
    except (OSError, StopIteration):
        return ""


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_workers_are_a_number():
    with pytest.raises(OptionError, match="positive integer: got 0"):
        LocalEngine(0)

"""The demo, end to end, smaller."""

import shutil
import subprocess
import sys

import pytest
from trials.helpers_trials import DATA

from normsmith.commands.compare import example
from normsmith.comparison.demonstration import demonstrate, quick
from normsmith.trials.recipe import read


def test_it_compares_and_examines(tmp_path):
    import tomllib

    recipe = tomllib.loads(example())
    small = {**recipe, "datasets": [DATA], "normalizers": ["batch", "layer"], "seeds": 2, "epochs": 2}
    shown = demonstrate(small, tmp_path, quiet=True)
    assert len(shown.comparison.trials) == 8
    assert [path.name for path in shown.paths] == ["report.html", "examine-best.html", "examine-worst.html"]
    page = shown.paths[0].read_text()
    for other in shown.paths[1:]:
        assert other.exists()
        assert f'href="{other.name}"' in page
    text = str(shown)
    assert "best model (" in text
    assert "worst model (" in text
    before = [path.stat().st_mtime for path in (tmp_path / "trials").iterdir()]
    demonstrate(small, tmp_path, quiet=True)
    assert before == [path.stat().st_mtime for path in (tmp_path / "trials").iterdir()]


def test_quick_is_a_recipe():
    import tomllib

    found = read(quick(tomllib.loads(example())))
    assert len(found.normalizers) * len(found.batch_sizes) * len(found.all_seeds) == 4


@pytest.mark.slow
def test_the_command_in_an_empty_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "normsmith", "demo"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "36 of 36" in done.stderr
    assert "worst model (batch at batch 2" in done.stdout, "that is what it is to show"
    assert "batch suffers at batch 2" in done.stdout
    out = tmp_path / "normsmith-results" / "digits"
    assert (out / "report.html").stat().st_size < 5_000_000
    shutil.rmtree(out)

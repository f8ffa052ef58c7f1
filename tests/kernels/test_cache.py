"""Compiled loops are kept under the name of their source, and not being able to keep them is no error."""

import shutil
from pathlib import Path

import numba
import pytest
from isolated import facts_of

from normsmith.kernels.cpu import cache

SMALL = """
import json, torch
from normsmith.kernels import cpu
one = torch.ones(1, 3)
print(json.dumps(cpu.cell_affine(torch.ones(2, 3, 4), one, one, one).tolist()))
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A copy of the source to change."""
    for path in Path(cache.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    return tmp_path


@pytest.mark.parametrize("name", ["rows.py", "columns.py", "merge.py", "memory.py", "parallel.py"])
def test_a_change_of_any_loop_is_a_new_folder(source, name):
    before = cache.folder()
    assert cache.folder() == before
    with (source / name).open("a") as file:
        file.write("\n")
    assert cache.folder() != before


def test_what_others_set_is_followed_and_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    own = cache.folder()
    assert own.is_relative_to(tmp_path)
    with cache.in_own_folder():
        assert str(own) == numba.config.CACHE_DIR
    assert str(tmp_path) == numba.config.CACHE_DIR


@pytest.mark.parametrize("where", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_a_folder_that_cannot_be_written_is_no_error(where):
    assert facts_of(SMALL, **{where: "/dev/null"}) == [[[1.0] * 4] * 3] * 2


def test_a_user_without_a_home_is_no_error(monkeypatch):
    """As in containers that run under a number nobody gave a name."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", home)
    with cache.in_own_folder():
        pass
    assert not numba.config.CACHE_DIR


BITS = """
import hashlib, json, torch, normsmith as ns
found = {}
with ns.backend("cpu"):
    for name in ("instance", "renorm", "filtered"):
        torch.manual_seed(0)
        x = (torch.randn(4, 4, 9, 9) * 2 + 0.3).requires_grad_()
        layer = ns.make(name, 4, affine=True)
        y = layer(x)
        given = torch.autograd.grad(y, (x, layer.weight, layer.bias), torch.randn(x.shape))
        found[name] = [hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for t in (y, *given)]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_is_compiled_and_what_is_kept_agree_to_the_bit(tmp_path):
    first, second = (facts_of(BITS, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first == second

"""Pickles: arrays and plain values come back; whatever names anything else is refused, and nothing has run."""

import os
import pickle

import numpy as np
import pytest

from normsmith.data._unpickle import loads
from normsmith.errors import InputError


class Runs:
    """What a hostile pickle holds."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Sets:
    """State for what a pickle may name."""

    def __reduce__(self):
        return np.ndarray, (), {"__setstate__": None}


@pytest.mark.parametrize(
    "hostile",
    [
        lambda path: Runs(os.system, f"touch {path}"),
        lambda path: Runs(eval, f"open({str(path)!r}, 'w')"),
        lambda path: Runs(exec, f"open({str(path)!r}, 'w')"),
        lambda path: Runs(open, str(path), "w"),
        lambda path: {"data": [Runs(os.mkdir, str(path))]},
        lambda path: Runs(getattr, 3, "real"),
        lambda path: Runs(np.fromfile, "/etc/passwd"),
        lambda path: Runs(np.memmap, str(path), "u1", "w+", 0, (3,)),
        lambda path: Runs(np.load, str(path)),
        lambda path: np.array([Runs(os.mkdir, str(path))], dtype=object),
        lambda path: np.array([None, 1], dtype=object),
        lambda path: Sets(),
        lambda path: Runs(__import__, "os"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_hostile_pickles_are_refused(tmp_path, hostile, protocol):
    path = tmp_path / "touched"
    written = pickle.dumps(hostile(path), protocol)
    with pytest.raises(InputError, match="it is expected to be a whole pickle of arrays and plain values"):
        loads(written, "it")
    assert not path.exists()
    assert np.array_equal(loads(pickle.dumps(np.arange(3), 2), "it"), np.arange(3)), "the reader itself was changed"


@pytest.mark.parametrize(
    "written",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c_codecs\nencode\n(S'a'\nS'zlib_codec'\ntR.",
        b"c_codecs\nencode\n(N(dS'encode'\nI1\nstb.",  # sets an attribute on what it is given
        b"cnumpy\nndarray\n(N(dS'empty'\nI1\nstb.",
        b"cnumpy\ndtype\n(N(dS'__setstate__'\nI1\nstb.",
    ],
)
def test_pickles_by_hand_are_refused(written):
    with pytest.raises(InputError, match="whole pickle"):
        loads(written, "it")
    assert loads(pickle.dumps([np.ones(2), b"c"], 2), "it")[1] == b"c"


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(4, dtype=">i4")]
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_come_back(array, protocol):
    found = loads(pickle.dumps({"a": (array, [1, "b", None, 2.5, b"c"])}, protocol), "it")["a"]
    assert np.array_equal(found[0], array)
    assert found[1] == [1, "b", None, 2.5, b"c"]

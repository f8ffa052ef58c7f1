"""Small sets written as the real ones are, and where the real ones are."""

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(os.environ.get("NORMSMITH_DATA", Path(__file__).parents[3] / "shared" / "data"))


def real(name):
    """The folder of a real set, or the reason why its test is skipped."""
    if not (REAL / name).is_dir():
        pytest.skip(f"no {name} in {REAL}; NORMSMITH_DATA says where data are")
    return REAL


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(path, array):
    data = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist(folder, train=20, test=10, end=".gz", dot="-"):
    """Labels go round 0 to 9; image i of a split is filled from seed 0 or 1."""
    for seed, (prefix, count) in enumerate((("train", train), ("t10k", test))):
        idx(folder / f"{prefix}-images{dot}idx3-ubyte{end}", pixels(count, 28, 28, seed=seed))
        idx(folder / f"{prefix}-labels{dot}idx1-ubyte{end}", np.arange(count, dtype=np.uint8) % 10)


def image(array, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def place(folder, files):
    """Files as a mapping of name to bytes, in a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tar(path, files, mode="w"):
    """Files as a mapping of name to bytes, in a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert "got" in text
    return text

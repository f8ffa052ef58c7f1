"""The idx format of MNIST and its kin, packed or not: a big-endian header, then bytes."""

import struct
from pathlib import Path

import torch
from torch import Tensor

from normsmith.data._files import content, folder_of
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split
from normsmith.errors import InputError

_NAMES = {
    "mnist": tuple(map(str, range(10))),
    "fashion-mnist": ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
}
_SUMS = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}


def read(source: Source) -> Found:
    """The four files of such a set."""
    folder = folder_of(source.name, source.root, source.entry.files)
    train, test = (_split(source, folder, prefix) for prefix in ("train", "t10k"))
    return Found(train, test, _NAMES[source.name])


def _split(source: Source, folder: Path, prefix: str) -> Split:
    images, where = _array(source, folder, f"{prefix}-images", 3)
    labels, _ = _array(source, folder, f"{prefix}-labels", 1)
    if len(images) != len(labels):
        raise InputError(f"{where} is expected to have an image for each of {len(labels)} labels: got {len(images)} images")
    return Split(images[:, None], labels.long())


def _array(source: Source, folder: Path, name: str, rank: int) -> tuple[Tensor, Path]:
    """The array of a file and its path; the magic number says bytes (8) and how many dimensions."""
    names = [f"{name}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in (".gz", "")]
    path = next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise InputError(f"{source.name} expects {names[0]} or {names[1]} in {folder}: got neither; fetch it")
    data = content(path, _SUMS[source.name] if source.checked else None)
    header = 4 + 4 * rank
    if len(data) < header or struct.unpack(">I", data[:4])[0] != 0x800 + rank:
        raise InputError(
            f"{path} is expected to start as idx with {0x800 + rank}: got {data[:4].hex() or 'nothing'}; fetch it again"
        )
    shape = struct.unpack(f">{rank}I", data[4:header])
    if len(data) - header != torch.Size(shape).numel():
        raise InputError(
            f"{path} is expected to have {torch.Size(shape).numel()} bytes for {'x'.join(map(str, shape))}: got "
            f"{len(data) - header}; fetch it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header).view(shape), path

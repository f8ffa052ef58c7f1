"""USPS as of "The Elements of Statistical Learning": a line for each image, its label and 256 grey values from -1, paper, to 1, ink."""

from pathlib import Path

import numpy as np
import torch

from normsmith.data._files import content, folder_of
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split
from normsmith.errors import InputError

_NUMBERS = 1 + 16 * 16


def read(source: Source) -> Found:
    """Both files, packed or not, on the scale from 0 to 1."""
    folder = folder_of(source.name, source.root, source.entry.files)
    train, test = (_split(folder, f"zip.{part}", source.name) for part in ("train", "test"))
    return Found(train, test, tuple(map(str, range(10))))


def _split(folder: Path, name: str, owner: str) -> Split:
    path = next((folder / n for n in (f"{name}.gz", name) if (folder / n).is_file()), None)
    if path is None:
        raise InputError(f"{owner} expects {name}.gz or {name} in {folder}: got neither; fetch it")
    lines = content(path).split(b"\n")
    words = [line.split() for line in lines if line.strip()]
    for number, line in enumerate(words, 1):
        if len(line) != _NUMBERS:
            raise InputError(
                f"{path} is expected to have {_NUMBERS} numbers in each line: got {len(line)} in line {number}; fetch it again"
            )
    try:
        values = np.array(words, dtype=np.float64).reshape(-1, _NUMBERS)
    except ValueError as error:
        raise InputError(f"{path} is expected to have numbers alone: got {error}; fetch it again") from None
    labels, pixels = values[:, 0], values[:, 1:]
    if not np.isin(labels, np.arange(10)).all() or not (np.abs(pixels) <= 1).all():
        raise InputError(f"{path} is expected to have labels from 0 to 9 and values from -1 to 1: got others; fetch it again")
    inputs = torch.from_numpy((pixels + 1) / 2).float().view(-1, 1, 16, 16)
    return Split(inputs, torch.from_numpy(labels).long())

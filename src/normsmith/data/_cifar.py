"""CIFAR-10 and CIFAR-100: the pickles of the python version, read by a restricted unpickler, or the binary version; in folders or tars."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from normsmith.data._files import Files, check_sum, files_of
from normsmith.data._source import Found, Source, without
from normsmith.data._unpickle import loads
from normsmith.data.dataset import Split
from normsmith.errors import InputError

_PIXELS = 3 * 32 * 32
_TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SUMS = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}


@dataclass(frozen=True)
class _Form:
    """What the files of one set are called, and where its labels are."""

    train: tuple[str, ...]
    test: str
    key: str  # of the labels in a pickle
    labels: int  # bytes before the pixels in the binary version; the last one is the label
    classes: int
    meta: tuple[str, str]  # file and key of the names in a pickle
    listing: str  # file of the names in the binary version


_FORMS = {
    "cifar10": _Form(
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        "test_batch",
        "labels",
        1,
        10,
        ("batches.meta", "label_names"),
        "batches.meta.txt",
    ),
    "cifar100": _Form(("train",), "test", "fine_labels", 2, 100, ("meta", "fine_label_names"), "fine_label_names.txt"),
}


def read(source: Source) -> Found:
    """All batches that are there; those that are missing are noted."""
    form = _FORMS[source.name]
    files = files_of(source.name, source.root, source.entry.files)
    binary = not files.ending(*form.train, form.test)
    end = ".bin" if binary else ""
    present = {name: found[0] for name in (*form.train, form.test) if (found := files.ending(name + end))}
    train = [name for name in form.train if name in present]
    for name in (*([] if train else form.train[:1]), form.test):
        if name not in present:
            raise InputError(f"{source.name} expects {name}{end} in {files.where}: got no such file; fetch it")
    decode: Callable[[bytes, str, _Form], Split] = _from_binary if binary else _from_pickle
    splits = {}
    for place, data in files.read(present.values()):
        name = place.rpartition("/")[2]
        check_sum(data, name, files.path(place), _SUMS if source.checked else {})
        splits[name.removesuffix(end)] = decode(data, files.path(place), form)
    notes = without(source.name, [name + end for name in form.train if name not in present], "there")
    return Found(_joined([splits[name] for name in train]), splits[form.test], _classes(files, form, binary), notes=notes)


def _joined(splits: list[Split]) -> Split:
    return Split(torch.cat([s.inputs for s in splits]), torch.cat([s.targets for s in splits]))


def _from_pickle(data: bytes, where: str, form: _Form) -> Split:
    batch = loads(data, where)
    pixels, labels = (batch.get("data"), batch.get(form.key)) if isinstance(batch, dict) else (None, None)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
        raise InputError(f"{where} is expected to have 'data' as bytes of shape N x {_PIXELS}: got another; fetch it again")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(type(label) is int for label in labels):
        count = len(labels) if isinstance(labels, list) else "no"
        raise InputError(
            f"{where} is expected to have {len(pixels)} numbers in {form.key!r}: got {count} labels; fetch it again"
        )
    return _split(torch.from_numpy(pixels.copy()), torch.tensor(labels, dtype=torch.int64), where, form)


def _from_binary(data: bytes, where: str, form: _Form) -> Split:
    """Records of the label bytes and then the pixels."""
    record = form.labels + _PIXELS
    if not data or len(data) % record:
        raise InputError(
            f"{where} is expected to have a whole number of records of {record} bytes: got {len(data)} bytes; fetch it again"
        )
    rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, record)
    return _split(rows[:, form.labels :].contiguous(), rows[:, form.labels - 1].long(), where, form)


def _split(pixels: Tensor, labels: Tensor, where: str, form: _Form) -> Split:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < form.classes:
        raise InputError(f"{where} is expected to have labels below {form.classes}: got {int(labels.max())}; fetch it again")
    return Split(pixels.view(-1, 3, 32, 32), labels)


def _classes(files: Files, form: _Form, binary: bool) -> tuple[str, ...]:
    """The names of the classes, from the file that has them if it is there."""
    found = files.ending(form.listing if binary else form.meta[0])
    names: list[str] = []
    if found and binary:
        names = files.one(found[0]).decode("utf-8", "replace").split()
    elif found:
        meta = loads(files.one(found[0]), files.path(found[0]))
        names = meta.get(form.meta[1], []) if isinstance(meta, dict) else []
    if len(names) == form.classes:
        return tuple(map(str, names))
    return _TEN if form.classes == 10 else tuple(map(str, range(form.classes)))

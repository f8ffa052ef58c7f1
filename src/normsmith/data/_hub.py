"""Sets of the Hugging Face hub, or in a folder in its form, by the package datasets: a column of images and one of class labels."""

from typing import Any

import torch

from normsmith.data._fit import evenly, resized
from normsmith.data._images import Listed, as_bytes, divided, stacked
from normsmith.data._package import imported
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split
from normsmith.errors import InputError

_TEST = ("test", "validation")


def read(source: Source) -> Found:
    """The splits train and test, or validation; where there is only train, a fifth of each class is to test with."""
    datasets = imported("datasets", "datasets", source.name, "datasets")
    name = source.name.removeprefix("hf:")
    try:
        splits = datasets.load_dataset(name, source.options.get("config"))
    except Exception as error:
        line = str(error).partition("\n")[0]
        raise InputError(
            f"{source.name} is expected to be a set that datasets can load: got {type(error).__name__}: {line}"
        ) from error
    if "train" not in splits:
        raise InputError(f"{source.name} expects a split 'train': got {', '.join(splits)}")
    rows = splits["train"]
    image, label = (_column(rows.features, kind, source) for kind in ("Image", "ClassLabel"))
    train = _listed(rows, label)
    other = next((split for split in _TEST if split in splits), None)
    if other is None:
        train, test = divided(train)
        held_out = rows
    else:
        held_out = splits[other]
        test = _listed(held_out, label)
    classes = tuple(rows.features[label].names)
    return Found(_split(rows, train, "train", image, source), _split(held_out, test, "test", image, source), classes)


def _column(features: Any, kind: str, source: Source) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if not found:
        raise InputError(f"{source.name} expects a column of type {kind}: got {', '.join(features)}")
    return str(found[0])


def _listed(rows: Any, label: str) -> Listed:
    labels = tuple(int(value) for value in rows[label])
    return Listed(tuple(map(str, range(len(labels)))), labels)


def _split(rows: Any, listed: Listed, title: str, image: str, source: Source) -> Split:
    number, size = source.options.get(title), source.options.get("size")
    if number is not None:
        listed = listed.select(evenly(torch.tensor(listed.labels), number, f"{source.name}: {title}"))
    images = [as_bytes(rows[int(place)][image]) for place in listed.names]
    return stacked([i if size is None else resized(i[None], size)[0] for i in images], listed, source)

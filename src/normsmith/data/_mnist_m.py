"""MNIST-M: two folders of PNGs, and a text file for each with a name and a label in each line; in a folder or in a tar."""

from normsmith.data._files import Files, files_of
from normsmith.data._images import Listed, decoded
from normsmith.data._source import Found, Source
from normsmith.errors import InputError


def read(source: Source) -> Found:
    """The images that the lists name."""
    files = files_of(source.name, source.root, source.entry.files)
    train, test = (decoded(files, _listed(files, part, source.name), part, source) for part in ("train", "test"))
    return Found(train, test, tuple(map(str, range(10))))


def _listed(files: Files, part: str, owner: str) -> Listed:
    name = f"mnist_m_{part}_labels.txt"
    found = files.ending(name)
    if not found:
        raise InputError(f"{owner} expects {name} in {files.where}: got no such file; docs/data.md has the layout")
    folder = found[0].removesuffix(name) + f"mnist_m_{part}/"
    names, labels, there = [], [], set(files.names)
    for number, line in enumerate(files.one(found[0]).decode("utf-8", "replace").splitlines(), 1):
        image, _, label = line.strip().rpartition(" ")
        if not image and not label:
            continue
        if not image or label not in set("0123456789"):
            raise InputError(f"{files.path(found[0])} expects a name and a digit in each line: got {line!r} in line {number}")
        if folder + image not in there:
            raise InputError(f"{owner} expects {folder + image}, which its list names, in {files.where}: got no such file")
        names.append(folder + image)
        labels.append(int(label))
    return Listed(tuple(names), tuple(labels))

"""Tiny ImageNet: train/<wnid>/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt, wnids.txt and words.txt; folder or tar."""

from normsmith.data._files import Files, files_of, parts
from normsmith.data._images import Listed, decoded, is_image
from normsmith.data._source import Found, Source
from normsmith.errors import InputError


def read(source: Source) -> Found:
    """The classes of wnids.txt that have images to train with, so that a part of the set will do; the validation images are the test."""
    files = files_of(source.name, source.root, source.entry.files)
    base = _base(files, source.name)
    wnids = _text(files, f"{base}wnids.txt").split()
    images = [name for name in files.names if is_image(name)]
    prefix = f"{base}train/"
    found = {parts(name.removeprefix(prefix))[0] for name in images if name.startswith(prefix)}
    wnids = [wnid for wnid in wnids if wnid in found]
    if not wnids:
        raise InputError(
            f"{source.name} expects {prefix}<wnid>/images/*.JPEG in {files.where}: got none of the classes in wnids.txt"
        )
    label = {wnid: index for index, wnid in enumerate(wnids)}
    names = [n for n in images if n.startswith(prefix) and parts(n.removeprefix(prefix))[0] in label]
    train = Listed(tuple(names), tuple(label[parts(n.removeprefix(prefix))[0]] for n in names))
    classes = _words(files, base, wnids)
    return Found(
        decoded(files, train, "train", source), decoded(files, _validation(files, base, label), "test", source), classes
    )


def _base(files: Files, owner: str) -> str:
    found = files.ending("wnids.txt")
    if not found:
        raise InputError(f"{owner} expects wnids.txt in {files.where}: got no such file; docs/data.md has the layout")
    return found[0].removesuffix("wnids.txt")


def _validation(files: Files, base: str, label: dict[str, int]) -> Listed:
    """What val_annotations.txt says, a file name and a wnid in each line, of the classes that are there."""
    annotations = f"{base}val/val_annotations.txt"
    if annotations not in files.names:
        raise InputError(f"tiny-imagenet expects {annotations} in {files.where}: got no such file; docs/data.md has the layout")
    there, names, labels = set(files.names), [], []
    for line in _text(files, annotations).splitlines():
        image, wnid = [*line.split("\t"), ""][:2]
        name = f"{base}val/images/{image}"
        if wnid in label:
            if name not in there:
                raise InputError(
                    f"tiny-imagenet expects {name}, which its annotations name, in {files.where}: got no such file"
                )
            names.append(name)
            labels.append(label[wnid])
    return Listed(tuple(names), tuple(labels))


def _words(files: Files, base: str, wnids: list[str]) -> tuple[str, ...]:
    """The first word for each class, or its wnid where words.txt has none."""
    if f"{base}words.txt" not in files.names:
        return tuple(wnids)
    lines = (line.partition("\t") for line in _text(files, f"{base}words.txt").splitlines())
    words = {wnid: word.partition(",")[0].strip() for wnid, _, word in lines}
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _text(files: Files, name: str) -> str:
    return files.one(name).decode("utf-8", "replace")

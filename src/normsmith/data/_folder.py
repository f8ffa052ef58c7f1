"""Images in a folder for each class, below a folder or in a tar; in train and test (or val) where these are there."""

from pathlib import Path

from normsmith.data._files import Files, parts
from normsmith.data._images import Listed, decoded, divided, is_image
from normsmith.data._source import Found, Source, without
from normsmith.errors import InputError

_TRAIN = ("train", "training")
_TEST = ("test", "val", "valid", "validation")


def read(source: Source) -> Found:
    """Classes are named by their folders, sorted. Without a split of its own, a fifth of each class is to test with."""
    files = Files(Path(source.name).expanduser())
    images = {name: parts(name) for name in files.names if is_image(name)}
    while images and len({way[0] for way in images.values()}) == 1 and all(len(way) > 2 for way in images.values()):
        images = {name: way[1:] for name, way in images.items()}  # a folder around everything says nothing
    tops = {way[0] for way in images.values() if len(way) > 1}
    first = next((top for top in _TRAIN if top in tops), None)
    second = next((top for top in _TEST if top in tops), None)
    if first is None or not all(len(way) > 2 for way in images.values() if way[0] == first):
        classes = _classes([way[0] for way in images.values() if len(way) > 1], source)
        train, test = divided(_listed(images, "", classes))
        notes: tuple[str, ...] = ()
    else:
        inside = {name: way for name, way in images.items() if len(way) > 2}
        classes = _classes([way[1] for way in inside.values() if way[0] == first], source)
        _check_test(inside, second, classes, source)
        train = _listed(inside, first, classes)
        train, test = divided(train) if second is None else (train, _listed(inside, second, classes))
        notes = without(source.name, sorted(tops - {first, second}), "used")
    return Found(decoded(files, train, "train", source), decoded(files, test, "test", source), classes, notes=notes)


def _classes(names: list[str], source: Source) -> tuple[str, ...]:
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise InputError(
            f"{source.name} expects a folder of images for each of two classes or more: got "
            f"{classes[0] + ' alone' if classes else 'none'}; docs/data.md has the layout"
        )
    return classes


def _listed(images: dict[str, tuple[str, ...]], top: str, classes: tuple[str, ...]) -> Listed:
    depth = 1 if top else 0
    chosen = [(name, way[depth]) for name, way in images.items() if len(way) > depth + 1 and (not top or way[0] == top)]
    return Listed(tuple(name for name, _ in chosen), tuple(classes.index(folder) for _, folder in chosen))


def _check_test(images: dict[str, tuple[str, ...]], second: str | None, classes: tuple[str, ...], source: Source) -> None:
    strange = {way[1] for way in images.values() if way[0] == second} - set(classes)
    if strange:
        raise InputError(f"{source.name} expects the classes of train in {second}: got {min(strange)!r}, which train has not")

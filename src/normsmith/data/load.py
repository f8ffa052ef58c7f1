"""`load` and `load_pair`: a data set from what a user can write on a command line or in a recipe."""

import difflib
import importlib
import os
from pathlib import Path
from typing import Any

from normsmith.data import catalog
from normsmith.data._files import is_tar
from normsmith.data._fit import check_fit, fitted
from normsmith.data._source import Found, Source
from normsmith.data.batches import Batches
from normsmith.data.catalog import Entry
from normsmith.data.dataset import Dataset, assemble
from normsmith.errors import InputError, OptionError
from normsmith.methods._specs import among, options_in

ARROW = "->"
Root = str | os.PathLike[str] | None


def load(name: str, root: Root = None) -> Dataset:
    """The data set of that name, read into memory.

    ```
    ns.data.load("digits")  # needs no file
    ns.data.load("cifar10:train=2000,test=500", root="~/data")
    ns.data.load("pacs:domain=sketch,size=64")
    ns.data.load("path/to/images:size=32,channels=grey")  # a folder or tar with a folder for each class
    ns.data.load("hf:NAME")  # by the package datasets
    ns.data.load("scenes:of=digits")  # a task that is made here: scenes, boxes, moving
    ns.data.load("mnist -> mnist-m")  # two domains, as `load_pair`: trained on the first, tested on the second
    ```

    `root` is the folder that holds the folder of the set, or that folder itself; by default the environment variable NORMSMITH_DATA.
    `train=` and `test=` take so many samples, each class with its share, evenly spaced, so that they are always the same; `size=` brings
    the shorter side of images to it and cuts the middle out of the longer; `channels=` is grey or rgb. `known()` lists the names.
    """
    if ARROW in name:
        source, target = load_pair(*ends(name), root)
        return assemble(name, source.task, source.train, target.test, source.classes, (*source.notes, *target.notes))
    entry, place, options = _checked(name)
    reader = importlib.import_module(f"normsmith.data.{entry.reader}")
    found: Found = reader.read(Source(entry, place, root, options))
    train, test = found.train, found.test
    if found.task == "classification":
        train, test = (fitted(s, options, title, place) for s, title in ((train, "train"), (test, "test")))
    return assemble(name, found.task, train, test, found.classes, found.notes)


def load_pair(source: str, target: str, root: Root = None) -> tuple[Dataset, Dataset]:
    """Two domains of one problem: the same classes, brought to the larger size and number of channels of both."""
    first, second = load(source, root), load(target, root)
    if first.classes != second.classes or first.task != second.task:
        raise InputError(
            f"a pair expects two sets with the same classes: got {source!r} with {_few(first.classes)} and {target!r} with "
            f"{_few(second.classes)}"
        )
    if first.task != "classification":
        raise InputError(f"a pair expects two sets for classification: got {first.task} in {source!r}")
    options = {"size": max(*first.size, *second.size), "channels": max(first.channels, second.channels)}
    return _as_in(first, options), _as_in(second, options)


def _as_in(data: Dataset, options: dict[str, Any]) -> Dataset:
    train, test = (fitted(split, options, "", data.name) for split in (data.train, data.test))
    return assemble(data.name, data.task, train, test, data.classes, data.notes)


def held_out(name: str, root: Root, size: int) -> Batches:
    """What a set has to test with, in batches of `size` that mix the classes, standardised as for training."""
    data = load(name, root)
    return Batches(data.test, size, mean=data.mean, std=data.std)


def check_name(name: str) -> None:
    """Raise for a name, or an option, that is not known."""
    for each in ends(name) if ARROW in name else (name,):
        _checked(each)


def ends(name: str) -> tuple[str, str]:
    """The names of the two sets of a pair."""
    source, _, target = name.partition(ARROW)
    return source.strip(), target.strip()


def _checked(name: str) -> tuple[Entry, str, dict[str, Any]]:
    """What `cut` finds, or an error if there is no such name, or no such option."""
    entry, place, options = cut(name)
    among(options, list(entry.known_options), place)
    check_fit(options, place)
    return entry, place, options


def cut(name: str) -> tuple[Entry, str, dict[str, Any]]:
    """The entry, the name or path, and the options of what `load` takes."""
    if not name.strip():
        raise OptionError(f"a data set is expected by its name or path: got {name!r}; normsmith.data.known() lists the names")
    head, colon, tail = name.strip().rpartition(":")
    if not colon or "=" not in tail or Path(name).exists():
        head, tail = name.strip(), ""
    if head.startswith("hf:"):
        return catalog.HUB, head, options_in(tail, name)
    known = catalog.known()
    if head in known:
        return known[head], head, options_in(tail, name)
    path = Path(head).expanduser()
    if path.is_dir() or (path.is_file() and is_tar(path)):
        return catalog.FOLDER, head, options_in(tail, name)
    near = difflib.get_close_matches(head.lower().partition(":")[0], known, n=2, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}"
    raise OptionError(
        f"a data set is expected by its name, or as the path of a folder or tar of images: got {head!r}; {advice}"
    )


def _few(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

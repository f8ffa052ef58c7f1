"""PACS: domain/class/file, in a folder or in a tar. It comes without a split: a fifth of each domain and class is to test with."""

from normsmith.data._files import files_of, parts
from normsmith.data._images import Listed, decoded, divided, is_image
from normsmith.data._source import Found, Source
from normsmith.errors import InputError
from normsmith.methods._base import one_of

_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def read(source: Source) -> Found:
    """One domain, or all of them one after the other."""
    domains = source.entry.domains
    wanted = source.options.get("domain")
    if wanted is not None:
        one_of(source.name, "domain", wanted, domains)
        domains = (wanted,)
    files = files_of(source.name, source.root, source.entry.files)
    halves = []
    for domain in domains:
        names = [
            name for name in files.names if is_image(name) and parts(name)[-3:-2] == (domain,) and parts(name)[-2] in _CLASSES
        ]
        if not names:
            raise InputError(
                f"{source.name} expects {domain}/{_CLASSES[0]} and the other classes in {files.where}: got no such images; "
                "docs/data.md has the layout"
            )
        halves.append(divided(Listed(tuple(names), tuple(_CLASSES.index(parts(name)[-2]) for name in names))))
    train, test = (
        Listed(tuple(n for part in side for n in part.names), tuple(n for part in side for n in part.labels))
        for side in zip(*halves, strict=True)
    )
    return Found(decoded(files, train, "train", source), decoded(files, test, "test", source), _CLASSES)

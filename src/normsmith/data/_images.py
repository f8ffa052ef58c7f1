"""Image files as tensors of bytes, decoded by pillow; those that are not wanted are not decoded."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normsmith.data._files import Files
from normsmith.data._fit import evenly, resized
from normsmith.data._package import imported
from normsmith.data._source import Source
from normsmith.data.dataset import Split
from normsmith.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_TEST = 5  # one in so many of each class, where a set has no split of its own
_RANGES = {"1": 255, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}  # grey modes and their white


@dataclass(frozen=True)
class Listed:
    """The images of one split: their names and labels."""

    names: tuple[str, ...]
    labels: tuple[int, ...]

    def select(self, places: Tensor) -> "Listed":
        """The images at these places."""
        chosen = places.tolist()
        return Listed(tuple(self.names[i] for i in chosen), tuple(self.labels[i] for i in chosen))


def is_image(name: str) -> bool:
    """Whether a name is that of an image; what begins with a dot is not."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def divided(listed: Listed) -> tuple[Listed, Listed]:
    """Train and test of a set without a split: evenly spaced in the sorted names of each class, a fifth of them to test."""
    labels = torch.tensor(listed.labels)
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        places = (labels == label).nonzero().flatten()
        test[places[_TEST - 1 :: _TEST]] = True
    return listed.select((~test).nonzero().flatten()), listed.select(test.nonzero().flatten())


def decoded(files: Files, listed: Listed, title: str, source: Source) -> Split:
    """The images of a split, as many as `source` wants under its title, in the size it wants."""
    if not listed.names:
        raise InputError(
            f"{source.name} expects images to {title} with in {files.where}: got none; docs/data.md has the layout"
        )
    number = source.options.get(title)
    if number is not None:
        listed = listed.select(evenly(torch.tensor(listed.labels), number, f"{source.name}: {title}"))
    found = {name: decode(data, files.path(name), source) for name, data in files.read(listed.names)}
    return stacked([found[name] for name in listed.names], listed, source)


def stacked(images: Sequence[Tensor], listed: Listed, source: Source) -> Split:
    """Images of one size as a split; grey ones among coloured ones become coloured."""
    if any(len(image) == 3 for image in images):
        images = [image.expand(3, -1, -1) for image in images]
    odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
    if odd is not None:
        sizes = ["x".join(map(str, images[i].shape[1:])) for i in (0, odd)]
        raise InputError(
            f"{source.name} expects images of one size: got {sizes[0]} in {listed.names[0]!r} and {sizes[1]} in "
            f"{listed.names[odd]!r}; add size="
        )
    return Split(torch.stack(list(images)), torch.tensor(listed.labels, dtype=torch.int64), listed.names)


def decode(data: bytes, where: str, source: Source) -> Tensor:
    """One image as (C, H, W), grey or in colour as it is, in the size that `source` wants; transparency is dropped."""
    with opened(data, where, source.name) as image:
        tensor = as_bytes(image)
    size = source.options.get("size")
    return tensor if size is None else resized(tensor[None], size)[0]


@contextlib.contextmanager
def opened(data: bytes, where: str, owner: str) -> Iterator[Any]:
    """A pillow image, read; what is wrong with it, or turns out to be inside, is one sentence."""
    reader = imported("PIL.Image", "pillow", owner)
    try:
        with reader.open(io.BytesIO(data)) as image:
            image.load()
            yield image
    except reader.UnidentifiedImageError:
        raise InputError(f"{where} is expected to be an image: got nothing that pillow knows; fetch it again") from None
    except (OSError, ValueError, SyntaxError, EOFError, reader.DecompressionBombError) as error:
        raise InputError(f"{where} is expected to be an image: got {error}; fetch it again, or take it out") from None


def as_bytes(image: Any) -> Tensor:
    """A pillow image as (C, H, W)."""
    white = _RANGES.get(image.mode)
    if white is None:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    if white == 255:
        return torch.from_numpy(np.array(image.convert("L")))[None]
    deep = np.asarray(image).astype(np.float64)
    return torch.from_numpy((deep * (255 / white)).round().clip(0, 255).astype(np.uint8))[None]

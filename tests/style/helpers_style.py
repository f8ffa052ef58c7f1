"""Small sets of made-up pictures, and a training of them in steps that take no time."""

import numpy as np
from PIL import Image

from normsmith.style.settings import Settings

CLASSES = ("n01", "n02")


def folder(where, size=16, train=6, test=3):
    """A folder of pictures for each class: reddish and bluish noise."""
    draw = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (where / split / name).mkdir(parents=True)
            for index in range(number):
                values = draw.integers(0, 120, (size, size, 3), dtype=np.uint8)
                values[..., 2 * label] += 120
                Image.fromarray(values).save(where / split / name / f"{index}.png")
    return where


def tiny_imagenet(where, size=64, train=6, test=3):
    """The same in the layout of Tiny ImageNet."""
    base = where / "tiny-imagenet-200"
    made = folder(where / "made", size, train, test)
    (base / "val" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(CLASSES))
    lines = []
    for name in CLASSES:
        (base / "train" / name).mkdir(parents=True)
        (made / "train" / name).rename(base / "train" / name / "images")
        for index, path in enumerate(sorted((made / "test" / name).iterdir())):
            path.rename(base / "val" / "images" / f"{name}_{index}.png")
            lines.append(f"{name}_{index}.png\t{name}")
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return where


def small(pictures, **changed):
    """Some steps of a network of some channels."""
    options = {"depths": (1, 1), "width": 4, "encoder_steps": 7, "decoder_steps": 6, "encoder_batch": 4, "decoder_batch": 2}
    return Settings(pictures=str(pictures), paintings=None, crop=16, **{**options, **changed})

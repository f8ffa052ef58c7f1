"""Sets of the Hugging Face hub, by a stand-in for the package datasets."""

import sys
import types

import numpy as np
import pytest
import torch
from data.helpers_data import one_sentence, pixels, place
from PIL import Image

import normsmith as ns
from normsmith.errors import DependencyError, InputError


class Feature:
    pass


class ClassLabel(Feature):
    names = ("no", "yes")


def hub(monkeypatch, splits, image_feature="Image"):
    """A stand-in for the package datasets, with rows as lists of (picture, label)."""
    features = {"text": Feature(), "picture": type(image_feature, (Feature,), {})(), "answer": ClassLabel()}

    class Rows:
        def __init__(self, rows):
            self.rows, self.features = rows, features

        def __getitem__(self, key):
            return (
                [row[1] for row in self.rows]
                if key == "answer"
                else {"picture": self.rows[key][0], "answer": self.rows[key][1]}
            )

    def load_dataset(name, config):
        if name != "someone/set":
            raise FileNotFoundError(f"no {name} on the hub\nsecond line")
        return {split: Rows(rows) for split, rows in splits.items()}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def rows(number, seed=0):
    return [(Image.fromarray(pixels(5, 5, 3, seed=seed + i)), i % 2) for i in range(number)]


def test_the_hub(monkeypatch):
    hub(monkeypatch, {"train": rows(10), "validation": rows(4, 50)})
    data = ns.data.load("hf:someone/set")
    assert data.classes == ("no", "yes")
    assert np.array_equal(data.train.inputs[3].permute(1, 2, 0).numpy(), pixels(5, 5, 3, seed=3))
    assert np.array_equal(data.test.inputs[1].permute(1, 2, 0).numpy(), pixels(5, 5, 3, seed=51))
    assert data.test.targets.tolist() == [0, 1, 0, 1]
    part = ns.data.load("hf:someone/set:train=4,size=3,channels=grey")
    assert part.train.inputs.shape == (4, 1, 3, 3)
    hub(monkeypatch, {"train": rows(10)})
    alone = ns.data.load("hf:someone/set")
    assert (len(alone.train), len(alone.test)) == (8, 2)
    assert torch.equal(alone.test.inputs, data.train.inputs[8:])


@pytest.mark.parametrize(
    ("name", "splits", "feature", "says"),
    [
        ("hf:nobody", {"train": rows(4)}, "Image", "got FileNotFoundError: no nobody on the hub"),
        ("hf:someone/set", {"test": rows(4)}, "Image", "a split 'train': got test"),
        ("hf:someone/set", {"train": rows(4)}, "Audio", "a column of type Image: got text, picture, answer"),
    ],
)
def test_the_hub_without_what_is_wanted(monkeypatch, name, splits, feature, says):
    hub(monkeypatch, splits, feature)
    with pytest.raises(InputError) as error:
        ns.data.load(name)
    assert says in one_sentence(error)


def test_packages_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DependencyError, match=r"hf:x needs datasets: .*; pip install 'datasets'"):
        ns.data.load("hf:x")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    where = place(tmp_path / "set", {"a/1.png": b"", "b/1.png": b""})
    with pytest.raises(DependencyError, match=r"needs pillow: .*; pip install 'normsmith\[data\]'"):
        ns.data.load(f"{where}")

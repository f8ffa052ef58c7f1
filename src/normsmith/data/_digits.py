"""The digits of scikit-learn, which need no file: 1,797 of 8x8, values from 0 to 16."""

import torch

from normsmith.data._package import imported
from normsmith.data._source import Found, Source
from normsmith.data.dataset import Split

_TEST = 5  # the last fifth of each class, which are other writers


def read(source: Source) -> Found:
    """The first four fifths of each class to train, the last fifth to test."""
    loaded = imported("sklearn.datasets", "scikit-learn", source.name).load_digits()
    images = torch.from_numpy(loaded.images).float().div_(16)[:, None].contiguous()
    targets = torch.from_numpy(loaded.target).long()
    test = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(10):
        places = (targets == label).nonzero().flatten()
        test[places[len(places) - len(places) // _TEST :]] = True
    whole = Split(images, targets)
    train, held_out = (whole.select(chosen.nonzero().flatten()) for chosen in (~test, test))
    return Found(train, held_out, tuple(map(str, range(10))))

"""What the tests of natural-gradient layers share: data of uneven directions, layers of every kind, a layer that has seen data."""

import copy

import torch
from torch import nn

from normsmith.natural.eigen import Eigen, EigenLayer
from normsmith.natural.whitened import WhitenedLayer, Whitening

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (50, 6)),
    "linear, no bias": (lambda: nn.Linear(6, 4, bias=False), (50, 6)),
    "linear, tokens": (lambda: nn.Linear(6, 4), (10, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, padding=2, dilation=2), (20, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2), (12, 6, 7, 7)),
    "conv2d, same": (lambda: nn.Conv2d(6, 4, (3, 5), padding="same"), (12, 6, 7, 7)),
    "conv2d, no bias": (lambda: nn.Conv2d(6, 4, 3, padding=1, bias=False), (12, 6, 7, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (12, 6, 7, 7)),
    "conv2d, depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (12, 6, 7, 7)),
    "conv2d, reflect": (lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), (12, 6, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2, padding=1), (6, 6, 3, 4, 3)),
}


def layer_and_input(name):
    """A plain layer in float64, and an input whose channels are correlated, unequal and far from zero."""
    make, shape = LAYERS[name]
    layer = make().double()
    axis = -1 if isinstance(layer, nn.Linear) else 1
    mixing = torch.randn(6, 6).double() * torch.tensor([5.0, 2, 1, 1, 0.5, 0.2]).double()
    x = (torch.randn(shape).double().movedim(axis, -1) @ mixing + 3).movedim(-1, axis)
    return layer, x.contiguous()


def whitened(layer, x, **options):
    """The layer, whitened by an input."""
    made = WhitenedLayer(copy.deepcopy(layer), Whitening(**options))
    return after(made, x)


def eigen(layer, x, slope, **options):
    """The layer, with inputs whitened, and gradients that `slope` sends back."""
    return after(EigenLayer(copy.deepcopy(layer), Eigen(**options)), x, slope)


def after(layer, x, slope=None):
    """A layer after a refresh by what one batch shows."""
    layer.attend("always")
    y = layer(x)
    if slope is not None:
        y.backward(slope)
    assert layer.gather()
    layer.refresh()
    layer.attend("never")
    return layer


def covariance(rows, centred=True):
    """The biased covariance, from the formula."""
    if centred:
        rows = rows - rows.mean(0)
    return rows.T @ rows / len(rows)

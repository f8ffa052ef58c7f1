"""How far evaluation is from training in one layer, from moments alone.

With statistics (m, v) of the data and (r, u) of the buffers, the outputs differ by d = (s_u - s_v) (x - m) + s_u (m - r) times the weight,
s = 1 / sqrt(. + eps); so E d^2 = (s_u - s_v)^2 v + s_u^2 (m - r)^2 per channel. The gap is the root of its mean over channels, relative
to the output in training, both weighted by weight^2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor.observation import Layer


@dataclass(frozen=True, eq=False)
class Gap:
    """The size over all channels, what chance alone would make it, and the channels."""

    size: float
    chance: float
    channels: Tensor


def gap(layer: Layer) -> Gap:
    """The gap of a layer with running statistics that saw data."""
    if layer.gap is None:
        layer.gap = _gap(layer)
    return layer.gap


def _gap(layer: Layer) -> Gap:
    moments = layer.moments
    assert moments is not None
    own = getattr(layer.module, "part_of", lambda statistic: statistic)  # the channels that have running statistics
    mean, var = own(moments.mean.flatten()), own(moments.var.flatten())
    running_mean, running_var = (t.cpu() for t in layer.running())
    by_data, by_buffers = (var + layer.eps).rsqrt(), (running_var + layer.eps).rsqrt()
    squares = (by_buffers - by_data).square() * var + by_buffers.square() * (mean - running_mean).square()
    weight = own(layer.gain().cpu().expand(layer.source.num_features)).square()
    by_output = weight * by_data.square()
    scale = max(float(by_output @ var), torch.finfo(torch.float64).tiny)
    chance = float(by_output @ own(layer.scatter())) / len(layer.samples) / scale
    return Gap(math.sqrt(float(weight @ squares) / scale), math.sqrt(chance), squares.sqrt())

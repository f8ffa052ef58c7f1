"""How far evaluation is from training in one layer, from moments alone.

With statistics (m, v) of the data and (r, u) of the buffers, the outputs differ by d = (s_u - s_v) (x - m) + s_u (m - r) times the weight,
s = 1 / sqrt(. + eps); so E d^2 = (s_u - s_v)^2 v + s_u^2 (m - r)^2 per channel. The gap is the root of its mean over channels, relative
to the output in training, both weighted by weight^2.
"""

from collections.abc import Sequence
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
        take_gaps([layer])
    assert layer.gap is not None
    return layer.gap


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the channels that have running statistics, of several layers, one behind the other: those of the data and of the buffers."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: Tensor
    layer: Tensor  # the number of each channel's layer
    sizes: list[int]  # channels of each layer

    def total(self, values: Tensor) -> Tensor:
        """The sum over each layer's channels."""
        return values.new_zeros(len(self.sizes)).index_add_(0, self.layer, values)


def statistics_of(layers: Sequence[Layer]) -> Statistics:
    """Those of layers with running statistics which saw data; many small sums are slow one by one."""
    rows = []
    for layer in layers:
        moments = layer.moments
        assert moments is not None
        seen = (_own(layer, t.flatten()) for t in (moments.mean, moments.var))
        rows.append((*seen, *(t.cpu() for t in layer.running())))
    mean, var, running_mean, running_var = (torch.cat(column) for column in zip(*rows, strict=True))
    sizes = [len(row[0]) for row in rows]
    number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    eps = torch.tensor([layer.eps for layer in layers], dtype=torch.float64)[number]
    return Statistics(mean, var, running_mean, running_var, eps, number, sizes)


def _own(layer: Layer, statistic: Tensor) -> Tensor:
    """That of the channels that have running statistics."""
    own: Tensor = getattr(layer.module, "part_of", lambda statistic: statistic)(statistic)
    return own


def take_gaps(layers: Sequence[Layer]) -> Statistics:
    """Fill in the gaps of layers, at least one, with running statistics which saw data; what they follow from."""
    have = statistics_of(layers)
    by_data, by_buffers = (have.var + have.eps).rsqrt(), (have.running_var + have.eps).rsqrt()
    off = (have.mean - have.running_mean).square()
    squares = (by_buffers - by_data).square() * have.var + by_buffers.square() * off
    gains = [_own(layer, layer.gain().cpu().expand(layer.source.num_features)) for layer in layers]
    weight = torch.cat(gains).square()
    by_output = weight * by_data.square()
    scale = have.total(by_output * have.var).clamp_min(torch.finfo(torch.float64).tiny)
    scatter = torch.cat([_own(layer, layer.scatter()) for layer in layers])
    calls = torch.tensor([len(layer.samples) for layer in layers], dtype=torch.float64)
    chances = (have.total(by_output * scatter) / calls / scale).sqrt().tolist()
    sizes = (have.total(weight * squares) / scale).sqrt().tolist()
    for layer, size, chance, channels in zip(layers, sizes, chances, torch.split(squares.sqrt(), have.sizes), strict=True):
        layer.gap = Gap(size, chance, channels)
    return have

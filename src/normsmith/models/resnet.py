"""Residual networks: one block with basic or bottleneck branch, norm before or behind, groups, squeeze and excitation, IBN."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods.batch import BatchNorm
from normsmith.models._blocks import (
    LARGE,
    GlobalPool,
    Norm,
    activation_after,
    convolution,
    expect_depths,
    expect_flags,
    expect_sizes,
    initialise,
    lacks_bias,
    norm_act,
    normalizer,
    unit,
)
from normsmith.surgery.place_ibn import place_ibn

EXPANSION = 4  # of a bottleneck


@dataclass(frozen=True)
class Kind:
    """What all blocks of a network have in common."""

    norm: Norm
    bottleneck: bool = False
    norm_first: bool = False
    groups: int = 1
    group_width: int = 64
    squeeze: int = 0
    shortcut: Literal["project", "pad"] = "project"
    bias: bool | None = None  # of the convolutions: None where their norm has none

    def sizes(self, planes: int, stride: int) -> list[tuple[int, int, int, int]]:
        """The convolutions of a branch: channels, kernel, stride, groups."""
        if not self.bottleneck:
            return [(planes, 3, stride, 1), (planes, 3, 1, 1)]
        inner = max(planes * self.group_width // 64, 1) * self.groups
        return [(inner, 1, 1, 1), (inner, 3, stride, self.groups), (planes * EXPANSION, 1, 1, 1)]


class Residual(nn.Module):
    """Shortcut plus branch: convolution, norm, ReLU in turns, or with `norm_first` norm, ReLU, convolution (He et al., 2016b)."""

    def __init__(self, before: int, planes: int, stride: int, kind: Kind) -> None:
        super().__init__()
        sizes = kind.sizes(planes, stride)
        after = sizes[-1][0]
        changes = stride > 1 or before != after
        self.projects = changes and kind.shortcut == "project"
        self.enter, self.branch, self.leave = nn.Sequential(), nn.Sequential(), nn.Sequential()
        if kind.norm_first:
            self.enter = norm_act(before, kind.norm)
        else:
            self.leave.append(nn.ReLU())
        for i, (channels, kernel, step, groups) in enumerate(sizes):
            self.branch.append(self._part(before if i == 0 else sizes[i - 1][0], channels, kernel, step, groups, i, kind))
        if kind.squeeze:
            self.branch.append(Squeeze(after, kind.squeeze))
        self.shortcut: nn.Module = nn.Identity()
        if changes:
            self.shortcut = _projection(before, after, stride, kind) if self.projects else Padding(before, after, stride)

    def _part(self, before: int, after: int, kernel: int, stride: int, groups: int, i: int, kind: Kind) -> nn.Module:
        """The convolution number `i` with its norm and activation."""
        if not kind.norm_first:
            last = i == len(kind.sizes(1, 1)) - 1
            act = None if last else nn.ReLU
            return unit(before, after, kernel, norm=kind.norm, stride=stride, groups=groups, activation=act, bias=kind.bias)
        first = self.enter if i == 0 else norm_act(before, kind.norm)
        bias = lacks_bias(first[0]) if kind.bias is None else kind.bias
        conv = convolution(before, after, kernel, stride=stride, groups=groups, bias=bias)
        return conv if i == 0 else nn.Sequential(OrderedDict([*first.named_children(), ("conv", conv)]))

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        added = self.branch(entered) + self.shortcut(entered if self.projects else x)
        left: Tensor = self.leave(added)
        return left


def _projection(before: int, after: int, stride: int, kind: Kind) -> nn.Module:
    """1×1, with a norm where there was none before it; a bias is in the branch that it is added to."""
    if kind.norm_first:
        return convolution(before, after, 1, stride=stride, bias=False)
    return unit(before, after, 1, norm=kind.norm, stride=stride, activation=None, bias=kind.bias)


class Padding(nn.Module):
    """The shortcut without parameters: every second position, and zeros for the new channels."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = after - before, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


class Squeeze(nn.Module):
    """Squeeze and excitation: every channel times a number between 0 and 1 made of the means of all."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.pool = GlobalPool()
        self.gate = nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.gate(self.pool(x))
        return x * gates[:, :, None, None]


class ResNet(nn.Module):
    """Stages of residual blocks, each with half the positions and twice the channels of the one before; mean; linear.

    - `depths`: blocks per stage. `width`: channels of the stem; those of a stage's 3×3 convolutions are `width * widen * 2^stage`.
    - `bottleneck`: 1×1, 3×3, 1×1 to four times the channels; the stride is in the 3×3, as in torchvision, in the paper in the first.
    - `norm_first`: norm and ReLU before each convolution, and once more at the end (He et al., 2016b), else behind it.
    - `groups`, `group_width`: of bottlenecks, ResNeXt's cardinality, and the width of a group where a stage has 64 planes.
    - `squeeze`: the reduction of squeeze and excitation at the end of each branch, 0 for none.
    - `shortcut`: where sizes change "project" (1×1) or "pad" (no parameters; that of the paper for CIFAR).
    - `stem`: "cifar" (3×3), "imagenet" (7×7 of stride 2, max pool), or "auto", by whether `image_size` is below 128.
    - `ibn`: "a" or "b" for IBN-Net's placement (`ns.place_ibn`); all other norms are `norm`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = "batch",
        depths: Sequence[int] = (3, 3, 3),
        width: int = 16,
        widen: int = 1,
        bottleneck: bool = False,
        norm_first: bool = False,
        groups: int = 1,
        group_width: int = 64,
        squeeze: int = 0,
        shortcut: Literal["project", "pad"] = "project",
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        ibn: Literal["a", "b"] | None = None,
    ) -> None:
        super().__init__()
        expect_sizes("ResNet", num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
        expect_sizes("ResNet", widen=widen, groups=groups, group_width=group_width)
        expect_depths("ResNet", depths)
        expect_flags("ResNet", bottleneck=bottleneck, norm_first=norm_first)
        if squeeze != 0:
            expect_sizes("ResNet", squeeze=squeeze)
        if not bottleneck and (groups, group_width) != (1, 64):
            raise OptionError(
                f"ResNet expects groups in bottlenecks: got groups={groups}, group_width={group_width}; add bottleneck=true"
            )
        one_of("ResNet", "shortcut", shortcut, ("project", "pad"))
        one_of("ResNet", "stem", stem, ("auto", "cifar", "imagenet"))
        bias = None if ibn is None else lacks_bias(normalizer(norm, width))
        kind = Kind(norm if ibn is None else "batch", bottleneck, norm_first, groups, group_width, squeeze, shortcut, bias)
        large = stem == "imagenet" or (stem == "auto" and image_size >= LARGE)
        self.stem = _stem(in_channels, width, kind, large)
        self.stages, channels = _stages(width, width * widen, depths, kind)
        self.last = norm_act(channels, kind.norm) if norm_first else nn.Sequential()
        self.pool = GlobalPool()
        self.head = nn.Linear(channels, num_classes)
        initialise(self)
        if ibn is not None:
            place_ibn(self, ibn)
            _exchange(self, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        features: Tensor = self.pool(self.last(self.stages(self.stem(x))))
        logits: Tensor = self.head(features)
        return logits


def _stem(in_channels: int, width: int, kind: Kind, large: bool) -> nn.Sequential:
    kernel, stride = (7, 2) if large else (3, 1)
    if kind.norm_first:
        bias = lacks_bias(normalizer(kind.norm, width)) if kind.bias is None else kind.bias
        stem = nn.Sequential(convolution(in_channels, width, kernel, stride=stride, bias=bias))
    else:
        stem = unit(in_channels, width, kernel, norm=kind.norm, stride=stride, bias=kind.bias)
    if large:
        stem.append(nn.MaxPool2d(3, 2, 1))
    return stem


def _stages(before: int, planes: int, depths: Sequence[int], kind: Kind) -> tuple[nn.Sequential, int]:
    """The stages, from the stem's channels on, and how many channels the last one gives."""
    stages = nn.Sequential()
    for i, depth in enumerate(depths):
        stage = nn.Sequential()
        for j in range(depth):
            stage.append(Residual(before, planes * 2**i, 2 if i > 0 and j == 0 else 1, kind))
            before = kind.sizes(planes * 2**i, 1)[-1][0]
        stages.append(stage)
    return stages, before


def _exchange(model: nn.Module, norm: Norm) -> None:
    """Put `norm` where batch norm is left, and take away the ReLU behind it where it has its own."""
    for module in list(model.modules()):
        for key, child in list(module.named_children()):
            if type(child) is BatchNorm:
                layer = normalizer(norm, child.num_features)
                setattr(module, key, layer)
                if "act" in module._modules:
                    module.act = activation_after(layer)

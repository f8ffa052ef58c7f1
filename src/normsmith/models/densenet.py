"""Dense networks, in which every layer reads what all layers before it in its block gave."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normsmith.models._blocks import (
    LARGE,
    GlobalPool,
    Norm,
    convolution,
    expect_depths,
    expect_flags,
    expect_sizes,
    initialise,
    lacks_bias,
    norm_act,
    unit,
)

BOTTLENECK = 4  # times the growth, the channels between the two convolutions of a layer


class DenseLayer(nn.Module):
    """x, and behind it in the channels what norm, ReLU and convolution make of it, with a 1×1 convolution first if `bottleneck`."""

    def __init__(self, before: int, growth: int, norm: Norm, bottleneck: bool) -> None:
        super().__init__()
        inner = BOTTLENECK * growth
        sizes = [(before, inner, 1), (inner, growth, 3)] if bottleneck else [(before, growth, 3)]
        self.branch = nn.Sequential(*(_norm_first(*size, norm) for size in sizes))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def _norm_first(before: int, after: int, kernel: int, norm: Norm) -> nn.Sequential:
    first = norm_act(before, norm)
    conv = convolution(before, after, kernel, bias=lacks_bias(first[0]))
    return nn.Sequential(OrderedDict([*first.named_children(), ("conv", conv)]))


class DenseNet(nn.Module):
    """Blocks of dense layers, between them 1×1 convolutions and 2×2 mean pools; norm, ReLU, mean, linear (Huang et al., 2017).

    - `depths`: layers per block. `growth`: the channels that each layer adds.
    - `bottleneck`: a 1×1 convolution to four times the growth in each layer, and half the channels from block to block: DenseNet-BC.
    - The stem is 7×7 of stride 2 with norm, ReLU and max pool from `image_size` 128 on, else 3×3; its channels are twice the growth, 16
      without `bottleneck`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = "batch",
        depths: Sequence[int] = (12, 12, 12),
        growth: int = 12,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        expect_sizes("DenseNet", num_classes=num_classes, in_channels=in_channels, image_size=image_size, growth=growth)
        expect_depths("DenseNet", depths)
        expect_flags("DenseNet", bottleneck=bottleneck)
        channels = 2 * growth if bottleneck else 16
        if image_size >= LARGE:
            self.stem = nn.Sequential(unit(in_channels, channels, 7, norm=norm, stride=2), nn.MaxPool2d(3, 2, 1))
        else:
            self.stem = nn.Sequential(convolution(in_channels, channels, 3, bias=norm is None))
        self.stages = nn.Sequential()
        for i, depth in enumerate(depths):
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(DenseLayer(channels, growth, norm, bottleneck))
                channels += growth
            self.stages.append(stage)
            if i < len(depths) - 1:
                after = channels // 2 if bottleneck else channels
                self.stages.append(nn.Sequential(_norm_first(channels, after, 1, norm), nn.AvgPool2d(2)))
                channels = after
        self.last = norm_act(channels, norm)
        self.pool = GlobalPool()
        self.head = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        features: Tensor = self.pool(self.last(self.stages(self.stem(x))))
        logits: Tensor = self.head(features)
        return logits

"""Networks in the manner of torchvision and of the CIFAR repositories, written as their blocks are, small."""

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """torchvision's: one ReLU module, used twice."""

    def __init__(self, before, planes, stride=1, downsample=None, attention=None, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.se = None if attention is None else attention(planes)
        self.downsample = downsample

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.se is not None:
            out = self.se(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Squeeze(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(planes, 2), nn.ReLU(), nn.Linear(2, planes), nn.Sigmoid())

    def forward(self, x):
        n, c, _, _ = x.size()
        return x * self.fc(self.pool(x).view(n, c)).view(n, c, 1, 1)


class ChannelAttention(nn.Module):
    """Efficient channel attention: a convolution along the channels, with one of its own."""

    def __init__(self, planes):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        weights = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * weights.transpose(1, 2).unsqueeze(-1)


class PreActivated(nn.Module):
    """Norm and ReLU before each convolution; functional ReLU; the shortcut runs first, behind the first norm."""

    def __init__(self, before, planes, stride=1, downsample=None):
        super().__init__()
        self.shortcut = downsample and downsample[0]
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if self.shortcut is not None else x
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + shortcut


class ResNet(nn.Module):
    def __init__(self, block=BasicBlock, widths=(4, 6, 8, 10), depth=2, **options):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        before = widths[0]
        for i, width in enumerate(widths, start=1):
            down = None
            if i > 1:
                down = nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width))
            first = block(before, width, 2 if i > 1 else 1, down, **options)
            setattr(self, f"layer{i}", nn.Sequential(first, *(block(width, width, **options) for _ in range(depth - 1))))
            before = width
        self.stages = len(widths)
        self.fc = nn.Linear(before, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, before, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(before, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)
        self.drop_rate = 0.0

    def forward(self, features):
        before = [features] if isinstance(features, torch.Tensor) else features
        out = self.conv1(self.relu1(self.norm1(torch.cat(before, 1))))
        out = self.conv2(self.relu2(self.norm2(out)))
        if self.drop_rate > 0:
            out = F.dropout(out, p=self.drop_rate, training=self.training)
        return out


class DenseBlock(nn.ModuleDict):
    """torchvision's: the block concatenates, its layers take a list."""

    def __init__(self, layers, before, growth):
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(before + i * growth, growth))

    def forward(self, x):
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, layers=(4, 2, 2, 2), growth=4):
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, 8, 3, padding=1, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(8))
        width = 8
        for i, number in enumerate(layers, start=1):
            self.features.add_module(f"denseblock{i}", DenseBlock(number, width, growth))
            width += number * growth
            if i < len(layers):
                transition = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 1), nn.AvgPool2d(2))
                self.features.add_module(f"transition{i}", transition)
                width = 8
        self.features.add_module("norm5", nn.BatchNorm2d(width))

    def forward(self, x):
        return self.features(x).mean((2, 3))

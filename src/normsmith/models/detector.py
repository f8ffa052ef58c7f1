"""A small detector of one object per image: its class and its box."""

from typing import Literal

import torch
from torch import Tensor, nn

from normsmith.models._blocks import Norm, expect_sizes, initialise, unit
from normsmith.models.tasks import Located

GRID = 4


class Detector(nn.Module):
    """Four 3×3 convolutions, three of stride 2, as `backbone`; two more, a 4×4 grid, and a linear layer for each answer as `head`.

    Backbone and head may have norms of their own, as detectors that are fine-tuned do: `head_norm` is that of the head, by default `norm`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        norm: Norm = "batch",
        head_norm: Norm | Literal["same"] = "same",
        width: int = 16,
    ) -> None:
        super().__init__()
        expect_sizes("Detector", num_classes=num_classes, in_channels=in_channels, width=width)
        sizes = ((in_channels, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 2))
        self.backbone = nn.Sequential(*(unit(b, a, 3, norm=norm, stride=stride) for b, a, stride in sizes))
        own = norm if head_norm == "same" else head_norm
        self.head = nn.Sequential(
            unit(4 * width, 4 * width, 3, norm=own),
            unit(4 * width, 2 * width, 3, norm=own),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Flatten(),
        )
        self.classes = nn.Linear(2 * width * GRID**2, num_classes)
        self.box = nn.Linear(2 * width * GRID**2, 4)
        initialise(self)

    def forward(self, x: Tensor) -> Located:
        """Logits (N, num_classes) and boxes (N, 4) of images (N, in_channels, H, W): left, top, right, bottom in shares of the sides."""
        features = self.head(self.backbone(x))
        middle, size = self.box(features).sigmoid().chunk(2, 1)
        return Located(self.classes(features), torch.cat([middle - size / 2, middle + size / 2], 1))

"""The shallow network on which mixture norm and unsupervised adaptive norm were compared."""

import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.errors import InputError
from normsmith.models._blocks import GlobalPool, Norm, expect_sizes, initialise, unit

SIZE, SMALLEST = 32, 8  # of a side


class ShallowCNN(nn.Module):
    """Four convolutions, 5×5×64, 5×5×128, 5×5×128 and 3×3×256, each with norm and ReLU, three max pools between, mean, linear.

    The pools are 3×3 with stride 2 and round up: only so are the maps 16, 8 and 4 wide, as the lecture prints. Images above 32×32 are
    scaled to that size. The lecture's table has the last convolution 3×3, a notebook of the authors 5×5; this follows the table. `width` is
    the number of channels of the first convolution, which the others are multiples of.
    """

    def __init__(self, num_classes: int = 10, *, in_channels: int = 3, norm: Norm = "batch", width: int = 64) -> None:
        super().__init__()
        expect_sizes("ShallowCNN", num_classes=num_classes, in_channels=in_channels, width=width)
        sizes = ((in_channels, width, 5), (width, 2 * width, 5), (2 * width, 2 * width, 5), (2 * width, 4 * width, 3))
        self.backbone = nn.Sequential()
        for i, (before, after, kernel) in enumerate(sizes, start=1):
            self.backbone.append(unit(before, after, kernel, norm=norm))
            if i < len(sizes):
                self.backbone.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        self.pool = GlobalPool()
        self.head = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        if min(x.shape[2:]) < SMALLEST:
            raise InputError(
                f"ShallowCNN expects images of at least {SMALLEST}×{SMALLEST}, to have something left behind three pools: got shape "
                f"{tuple(x.shape)}; scale them up"
            )
        if max(x.shape[2:]) > SIZE:
            x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        features: Tensor = self.pool(self.backbone(x))
        logits: Tensor = self.head(features)
        return logits

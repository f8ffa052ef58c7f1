"""A small U-Net for segmentation."""

import torch
from torch import Tensor, nn

from normsmith.models._blocks import Norm, expect_sizes, initialise, unit


class UNet(nn.Module):
    """Down by `depth` max pools and up again, with what was on the way down beside it (Ronneberger, Fischer and Brox, 2015).

    At each level two 3×3 convolutions with norm and ReLU; `width` channels at the top, twice as many a level below. Convolutions are padded
    and pools round up, so that images of any size come out as large as they came in.
    """

    def __init__(
        self, num_classes: int = 10, *, in_channels: int = 3, norm: Norm = "batch", width: int = 16, depth: int = 3
    ) -> None:
        super().__init__()
        expect_sizes("UNet", num_classes=num_classes, in_channels=in_channels, width=width, depth=depth)
        widths = [width * 2**i for i in range(depth + 1)]
        self.backbone = nn.ModuleList(_level(b, a, norm) for b, a in zip([in_channels, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.decoder = nn.ModuleList(_level(2 * w, w, norm) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes, H, W) of images (N, in_channels, H, W)."""
        passed: list[Tensor] = []
        for i, level in enumerate(self.backbone):
            x = level(self.pool(x) if i else x)
            passed.append(x)
        for up, level, beside in zip(self.up, self.decoder, reversed(passed[:-1]), strict=True):
            raised = up(x)[:, :, : beside.shape[2], : beside.shape[3]]
            x = level(torch.cat([beside, raised], 1))
        logits: Tensor = self.head(x)
        return logits


def _level(before: int, after: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(unit(before, after, 3, norm=norm), unit(after, after, 3, norm=norm))

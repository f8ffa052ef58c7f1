"""A small network for clips."""

from torch import Tensor, nn

from normsmith.models._blocks import GlobalPool, Norm, expect_sizes, initialise, unit


class ClipNet(nn.Module):
    """Four 3×3×3 convolutions with norm and ReLU, max pools between, mean, linear: a small C3D (Tran et al., 2015).

    As there, the first pool leaves the frames alone. `width` is the number of channels of the first convolution.
    """

    def __init__(self, num_classes: int = 10, *, in_channels: int = 3, norm: Norm = "batch", width: int = 16) -> None:
        super().__init__()
        expect_sizes("ClipNet", num_classes=num_classes, in_channels=in_channels, width=width)
        self.backbone = nn.Sequential(
            unit(in_channels, width, 3, norm=norm, dims=3),
            nn.MaxPool3d((1, 2, 2), ceil_mode=True),
            unit(width, 2 * width, 3, norm=norm, dims=3),
            nn.MaxPool3d(2, ceil_mode=True),
            unit(2 * width, 4 * width, 3, norm=norm, dims=3),
            nn.MaxPool3d(2, ceil_mode=True),
            unit(4 * width, 4 * width, 3, norm=norm, dims=3),
        )
        self.pool = GlobalPool()
        self.head = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of clips (N, in_channels, T, H, W)."""
        features: Tensor = self.pool(self.backbone(x))
        logits: Tensor = self.head(features)
        return logits

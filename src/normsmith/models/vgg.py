"""Plain stacks of convolutions: VGG, and AlexNet as one tower."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from normsmith.methods._base import one_of
from normsmith.models._blocks import LARGE, GlobalPool, Norm, expect_depths, expect_sizes, initialise, unit

HIDDEN = 4096


class VGG(nn.Module):
    """Stages of 3×3 convolutions, each with norm and ReLU, and a 2×2 max pool after each stage (Simonyan and Zisserman, 2015).

    `depths` are the convolutions per stage; `width` the channels of the first, doubled from stage to stage up to eight times. `head` is
    "mean" (the mean over positions and one linear layer, usual for 32×32), "paper" (all positions and two hidden layers of 4096 with
    dropout), or "auto", by whether `image_size` is below 128. The pools round up, so that small images get through.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = "batch",
        depths: Sequence[int] = (1, 1, 2, 2, 2),
        width: int = 64,
        head: Literal["auto", "mean", "paper"] = "auto",
    ) -> None:
        super().__init__()
        expect_sizes("VGG", num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
        expect_depths("VGG", depths)
        one_of("VGG", "head", head, ("auto", "mean", "paper"))
        before, size = in_channels, image_size
        self.backbone = nn.Sequential()
        for i, depth in enumerate(depths):
            after = width * min(2**i, 8)
            for _ in range(depth):
                self.backbone.append(unit(before, after, 3, norm=norm))
                before = after
            self.backbone.append(nn.MaxPool2d(2, ceil_mode=True))
            size = (size + 1) // 2
        large = head == "paper" or (head == "auto" and image_size >= LARGE)
        self.head = _paper_head(before * size**2, num_classes) if large else _mean_head(before, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


class AlexNet(nn.Module):
    """Five convolutions, each with norm and ReLU, and three overlapping max pools (Krizhevsky, 2014, which has one tower).

    For images of 128 and more as the paper: 11×11 of stride 4, two hidden layers of 4096 with dropout. Below, as there is no such table,
    the first convolution is 5×5 of stride 2, so that maps are 16, 8, 4 and 2 wide at 32×32, and the head is the mean and one linear layer.
    The papers have local response norm behind the first two ReLUs (2012) or none (2014); here `norm` stands before all five.
    """

    def __init__(
        self, num_classes: int = 10, *, in_channels: int = 3, image_size: int = 32, norm: Norm = "batch", width: int = 64
    ) -> None:
        super().__init__()
        expect_sizes("AlexNet", num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)
        large = image_size >= LARGE
        first = unit(in_channels, width, 11 if large else 5, norm=norm, stride=4 if large else 2, padding=2)
        sizes = ((width, 3 * width, 5), (3 * width, 6 * width, 3), (6 * width, 4 * width, 3), (4 * width, 4 * width, 3))
        others = [unit(*size, norm=norm) for size in sizes]
        pools = [nn.MaxPool2d(3, 2, padding=0 if large else 1) for _ in range(3)]
        self.backbone = nn.Sequential(first, pools[0], others[0], pools[1], *others[1:], pools[2])
        if large:
            size = (image_size - 7) // 4 + 1  # what 11×11 of stride 4 and padding 2 leave
            for _ in pools:
                size = (size - 3) // 2 + 1
            self.head = _paper_head(4 * width * size**2, num_classes, dropout_first=True)
        else:
            self.head = _mean_head(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, H, W)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def _mean_head(features: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(GlobalPool(), nn.Linear(features, num_classes))


def _paper_head(features: int, num_classes: int, *, dropout_first: bool = False) -> nn.Sequential:
    """Two hidden layers with dropout; AlexNet's stands before the linear layers, VGG's behind."""
    hidden = [(features, HIDDEN), (HIDDEN, HIDDEN)]
    parts: list[nn.Module] = [nn.Flatten()]
    for before, after in hidden:
        linear = [nn.Linear(before, after), nn.ReLU()]
        parts += [nn.Dropout(), *linear] if dropout_first else [*linear, nn.Dropout()]
    return nn.Sequential(*parts, nn.Linear(HIDDEN, num_classes))

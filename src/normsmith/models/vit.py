"""A small vision transformer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.models._blocks import Norm, expect_sizes, token_normalizer

SPREAD = 0.02  # of the weights at the start, normal cut off at two


class Attention(nn.Module):
    """Every token as a mean of what all tokens say, weighted by how their keys fit its query, head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        three = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = three.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Encoder(nn.Module):
    """Attention, then a hidden layer with GELU, each on the normalized tokens and added to them."""

    def __init__(self, width: int, heads: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = token_normalizer(norm, width)
        self.attention = Attention(width, heads)
        self.norm2 = token_normalizer(norm, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ViT(nn.Module):
    """Patches as tokens, a class token, learned positions, `depth` encoders with the norm first (Dosovitskiy et al., 2021).

    Layer norm, the default, and RMS norm act on each token; other methods see (N, width, tokens), as `ns.convert` gives it to them.
    `patch` is the side of a patch, by default an eighth of the image.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = "layer",
        patch: int | None = None,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        patch = max(image_size // 8, 1) if patch is None else patch
        expect_sizes("ViT", num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch)
        expect_sizes("ViT", width=width, depth=depth, heads=heads)
        if image_size % patch or width % heads:
            raise OptionError(
                f"ViT expects a patch that divides the image and heads that divide the width: got {patch} for {image_size}, "
                f"{heads} for {width}"
            )
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch) ** 2 + 1, width))
        self.encoders = nn.Sequential(*(Encoder(width, heads, norm) for _ in range(depth)))
        self.last = token_normalizer(norm, width)
        self.head = nn.Linear(width, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=SPREAD, a=-2 * SPREAD, b=2 * SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, in_channels, image_size, image_size)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1).to(tokens.dtype), tokens], 1) + self.positions
        logits: Tensor = self.head(self.last(self.encoders(tokens))[:, 0])
        return logits

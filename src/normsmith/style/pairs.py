"""The pictures that a decoder is trained on, in pairs: which, and what part of them, depends on the seed and the step alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.data._seeds import generator


@dataclass(frozen=True, eq=False)
class Pairs:
    """Contents and styles, drawn alike from some pools of pictures (N, 3, H, W), uint8, each pool as often."""

    pools: Sequence[Tensor]
    size: int
    crop: int
    seed: int

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The contents and the styles of a step, (size, 3, crop, crop) of 0 to 1."""
        draw = generator(self.seed, "pairs", step)
        windows = torch.stack([self._window(draw) for _ in range(2 * self.size)])
        contents, styles = torch.split(windows.contiguous(memory_format=torch.channels_last), self.size)
        return contents, styles

    def _window(self, draw: torch.Generator) -> Tensor:
        """A square of any size from `crop` up, anywhere in a picture, brought to `crop`, in half of the cases left to right."""

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=draw))

        pool = self.pools[below(len(self.pools))]
        picture = pool[below(len(pool))]
        height, width = picture.shape[-2:]
        least = min(self.crop, height, width)
        side = least + below(min(height, width) - least + 1)
        top, left = below(height - side + 1), below(width - side + 1)
        window = picture[:, top : top + side, left : left + side].float() / 255
        if side != self.crop:
            window = F.interpolate(window[None], (self.crop, self.crop), mode="bilinear", antialias=True, align_corners=False)[
                0
            ]
        return window.flip(-1) if below(2) else window

"""Position norm: at every position of every sample, the channels are brought to mean 0 and variance 1.

Formula: y = (x - mean_ns) / sqrt(var_ns + eps) * weight_c + bias_c, mean and biased variance over the C channels at a position.
This is the channels-first LayerNorm of ConvNeXt. `centered=False` is pixel norm: x / sqrt(mean_ns(x²) + eps) * weight_c, without bias.
`statistics(x)` gives mean and standard deviation, for positional normalization with moment shortcut (PONO-MS): a decoder takes them as
its bias and scale.

Differs from batch norm: statistics per position, the same in training and evaluation, independent of the batch. Layer norm here is over
positions too; in transformers, where a position is a sample, "layer norm" means this one. The authors' PONO has no affine map and takes
the unbiased variance, ConvNeXt has eps=1e-6, pixel norm of GANs 1e-8 and no weight (`affine=False`): here the variance is biased and
eps 1e-5 as in torch's layer norm.
How it meets the frame: a cell is one position, the view (N, S, C) of x; `mix` standardizes it. The affine map is per channel, so it is
a second step, which keeps y before it as well.
Cost: 3 passes over x forward, 4 backward. With adjacent channels (channels_last, tokens) torch's layer norm does it in one each.
Fails when: there are few channels, or the statistics of a position are the signal.
Reference: Li, Wu, Weinberger and Belongie, "Positional Normalization", NeurIPS 2019; Karras et al., "Progressive Growing of GANs", ICLR
2018; Liu et al., "A ConvNet for the 2020s", CVPR 2022.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Standardized, Triple
from normsmith.cells import cut
from normsmith.kernels.choose import prefer_torch
from normsmith.measure import measure
from normsmith.methods._base import Normalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: Moments, batch: None, *, eps: float, centered: bool) -> Standardized:
    return Standardized(cells, None, None, eps, centered)


def per_channel(cells: None, batch: None, weight: Tensor, bias: Tensor | None) -> Triple:
    return 0.0, weight, 0.0 if bias is None else bias


class PositionNorm(Normalizer):
    """Position norm over (N, C, *spatial), pixel norm with `centered=False`; the card is `normsmith show position`."""

    num_features: int
    eps: float

    def __init__(
        self,
        num_features: int,
        *,
        centered: bool = True,
        eps: float = 1e-5,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, bias=centered, act=act, device=device, dtype=dtype)
        self.centered = centered

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.centered:
            self.warn_if_single(self.num_features, "position", "normalize with InstanceNorm")
        if mask is None and prefer_torch("position" if self.centered else "position_rms", x):
            return self.activated(self._by_torch(x))
        options = partial(mix, eps=self.eps, centered=self.centered)
        places = None if mask is None else cut(mask).transpose(1, 2)
        last = self.bend if self.weight is None else None
        y = normalize(cut(x).transpose(1, 2), options, sees="cells", mask=places, act=last).y.transpose(1, 2).view(x.shape)
        if self.weight is None:
            return y
        return normalize(y, per_channel, self.weight, self.bias, sees="nothing", mask=mask, act=self.bend).y

    def _by_torch(self, x: Tensor) -> Tensor:
        """torch's layer norm, on x with its channels last: a view if they are adjacent, else a copy there and back."""
        moved = x.movedim(1, -1)
        wide = moved if self.weight is None or self.weight.dtype == x.dtype else moved.to(self.weight.dtype)
        if self.centered:
            y = F.layer_norm(wide, (self.num_features,), self.weight, self.bias, self.eps)
        else:
            y = F.rms_norm(wide, (self.num_features,), self.weight, self.eps)
        y = y.to(x.dtype).movedim(-1, 1)
        return y if torch.compiler.is_compiling() or moved.is_contiguous() else y.contiguous()

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation sqrt(var + eps) at every position, (N, 1, *spatial); differentiable."""
        self.check_input(x)
        cells, _ = measure(cut(x).transpose(1, 2), sees="cells")
        assert cells is not None
        shape = (x.shape[0], 1, *x.shape[2:])
        return cells.mean.view(shape), (cells.var + self.eps).sqrt().view(shape)

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if spatial_dims > 0 or self.bend is not None:
            return None
        kind = nn.LayerNorm if self.centered else nn.RMSNorm
        return kind(self.num_features, eps=self.eps, elementwise_affine=self.affine)

    def options(self) -> dict[str, Any]:
        return {"centered": self.centered, "eps": self.eps, "affine": self.affine, **self.own_activation()}

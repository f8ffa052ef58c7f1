"""Local response norm: every element is divided by a power of the mean square of the channels around it, at its own position.

Formula: y = x / (k + alpha * mean(x²))^beta, the mean over `size` adjacent channels, those that do not exist counting as zeros.

Differs from batch norm: nothing is subtracted, no parameters, no eps (k is what keeps the divisor from zero); the same in training and
evaluation, independent of the batch. AlexNet's paper has k=2, size=5, alpha=1e-4, beta=0.75 and a sum of squares, that is
alpha=size * 1e-4 here; torch and we take the mean and have k=1. A lecture calls it "response normalization".
Outside the frame: the statistic is of a window of channels at one position, another for every element; torch's operator does it.
Cost: torch's: about 6 passes over x forward.
Fails when: scale has to be controlled: with the usual alpha it hardly normalizes. Superseded by batch norm.
Reference: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.kernels.choose import backend_for
from normsmith.methods._base import Normalizer
from normsmith.surroundings import must_stay_plain, without_autocast


class LocalResponseNorm(Normalizer):
    """Local response norm over (N, C, *spatial), options as torch's; the card is `normsmith show local_response`.

    It has no parameters; `device` and `dtype` are accepted as by every other layer, for factories that pass them to all.
    """

    def __init__(
        self,
        num_features: int,
        *,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=None, affine=False, act=act, device=device, dtype=dtype)
        if type(size) is not int or size < 1:
            raise OptionError(f"LocalResponseNorm expects size, a number of channels, as a positive integer: got {size!r}")
        if not k > 0 or not alpha >= 0:
            raise OptionError(
                f"LocalResponseNorm expects k above zero and alpha not below, to divide by: got k={k!r}, alpha={alpha!r}"
            )
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        kept = x if mask is None else torch.where(mask, x, 0)
        if not must_stay_plain((x,)):
            backend_for(x)  # an error where a forced backend cannot take x, though there is only torch's operator
        with without_autocast(x):
            wide = kept.float() if x.dtype in (torch.float16, torch.bfloat16) else kept
            wide = wide if x.dim() > 2 else wide.unsqueeze(2)
            y = F.local_response_norm(wide, self.size, self.alpha, self.beta, self.k).to(x.dtype).view_as(x)
        return self.activated(y)

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        plain = spatial_dims > 0 and self.bend is None
        return nn.LocalResponseNorm(self.size, self.alpha, self.beta, self.k) if plain else None

    def options(self) -> dict[str, Any]:
        return {"size": self.size, "alpha": self.alpha, "beta": self.beta, "k": self.k, **self.own_activation()}

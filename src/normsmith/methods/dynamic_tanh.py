"""Dynamic tanh: no statistics at all; a tanh with a learned slope squashes what a norm would have brought to scale.

Formula: y = tanh(alpha * x) * weight_c + bias_c, with one number alpha for the layer, 0.5 at the start (`init_alpha`).

Differs from batch norm: nothing is measured and nothing is invariant; the same in training and evaluation, every element by itself.
The paper's code has channels last and elementwise weights of transformers; here the channels are dimension 1, as everywhere. There is
no eps, as nothing is divided by.
Outside the frame: the output is not an affine map of x and no moments are taken, so there is no `mix`; the function is `curve`.
Cost: 1 pass over x forward, 1 over x and dy backward, which computes the tanh again.
Fails when: the scale of x changes by orders of magnitude, so that every element is in the flat part of the tanh; or the slope that is
learned has to differ between channels.
Reference: Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization", CVPR 2025.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer
from normsmith.pointwise import pointwise


def curve(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = torch.tanh(alpha * x)
    return y if weight is None or bias is None else torch.addcmul(bias, y, weight)


class DynamicTanh(Normalizer):
    """Dynamic tanh over (N, C, *spatial); the card is `normsmith show dynamic_tanh`."""

    alpha: nn.Parameter
    parameter_kinds: ClassVar[dict[str, str]] = {"alpha": "slopes"}

    def __init__(
        self,
        num_features: int,
        *,
        init_alpha: float = 0.5,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=None, affine=affine, act=act, device=device, dtype=dtype)
        if not init_alpha > 0:
            raise OptionError(f"DynamicTanh expects init_alpha, a slope, above zero: got {init_alpha!r}; try init_alpha=0.5")
        self.init_alpha = init_alpha
        self.alpha = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, alpha as at the start."""
        super().reset_parameters()
        if "alpha" in self._parameters:
            nn.init.constant_(self.alpha, self.init_alpha)

    def precision(self) -> torch.dtype:
        return self.alpha.dtype

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        y = pointwise(x if mask is None else torch.where(mask, x, 0), curve, self.alpha, self.weight, self.bias)
        return self.activated(y if mask is None else torch.where(mask, y, 0))

    def options(self) -> dict[str, Any]:
        return {"init_alpha": self.init_alpha, "affine": self.affine, **self.own_activation()}

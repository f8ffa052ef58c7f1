"""Filter response norm: every channel of every sample is divided by its root mean square, then cut off below a learned threshold.

Formula: y = max(x / sqrt(mean_nc(x²) + eps) * weight_c + bias_c, tau_c), the mean over (*spatial). `threshold=False` leaves `tau` out,
for another activation to follow. `learn_eps=True` adds |learned_eps| to eps, a parameter that starts at 1e-4: for maps of a single
position, where the fixed one would leave x / |x|.

Differs from batch norm: statistics per sample and channel, no centring, so a large common mean drowns what does carry information; the
same in training and evaluation, independent of the batch; no activation after it. The paper has eps=1e-6, timm 1e-5. Of the shape of
the learned eps the sources at hand say nothing: here it is one number for the layer. Its gradient at zero is zero. tau starts at 0, as
in timm: then the layer ends in a ReLU. At a tie of y and tau the gradient is tau's (timm: half for each).
The mean of squares is taken as var + mean², which does not cancel.
Cost: 2 passes over x forward, 2 over x and dy backward; the threshold is part of them.
Fails when: the map is a single position and eps is fixed (a warning: only the sign of x is left), or x is far from zero.
Reference: Singh and Krishnan, "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep Neural
Networks", CVPR 2020.
"""

import math
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized, Triple
from normsmith.methods._base import Normalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: Moments, batch: None, weight: Tensor | None, bias: Tensor | None, learned_eps: Tensor | None, *, eps: float
) -> Triple | Standardized:
    if learned_eps is None:
        return Standardized(cells, weight, bias, eps, centered=False)
    scale = (cells.var + cells.mean.square() + (eps + learned_eps.abs())).rsqrt()
    return 0.0, scale if weight is None else scale * weight, 0.0 if bias is None else bias


class FilterResponseNorm(Normalizer):
    """Filter response norm over (N, C, *spatial), with its threshold; the card is `normsmith show filter_response`."""

    eps: float
    tau: nn.Parameter | None
    learned_eps: nn.Parameter | None
    parameter_kinds: ClassVar[dict[str, str]] = {"tau": "thresholds", "learned_eps": "floors"}

    def __init__(
        self,
        num_features: int,
        *,
        threshold: bool = True,
        learn_eps: bool = False,
        eps: float = 1e-6,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.threshold = self.activates = threshold
        super().__init__(num_features, eps=eps, affine=affine, act=act, device=device, dtype=dtype)
        self.learn_eps = learn_eps
        for key, wanted, shape in (("tau", threshold, (num_features,)), ("learned_eps", learn_eps, ())):
            empty = nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(key, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, tau 0, learned_eps 1e-4."""
        super().reset_parameters()
        for key, value in (("tau", 0.0), ("learned_eps", 1e-4)):
            parameter = self._parameters.get(key)
            if parameter is not None:
                nn.init.constant_(parameter, value)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if not self.learn_eps:
            self.warn_if_single(
                math.prod(x.shape[2:]), "sample and channel", "say learn_eps=True", "only the sign of x is left"
            )
        options = partial(mix, eps=self.eps)
        tensors = (self.weight, self.bias, self.learned_eps)
        return normalize(x, options, *tensors, sees="cells", mask=mask, floor=self.tau, act=self.bend).y

    def options(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "learn_eps": self.learn_eps, **super().options()}

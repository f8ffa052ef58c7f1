"""RMS norm: every sample is divided by the root of the mean of its squares; nothing is subtracted.

Formula: y = x / sqrt(mean(x²) + eps) * weight, the mean over (C, *spatial) of a sample; eps=None is the machine epsilon of the type of
x, as in torch. `RMSNorm(64)` takes (N, 64, *spatial) with one weight per channel; `RMSNorm((64,))` is torch's form: over these trailing
dimensions of an input of any rank, one weight per element. Transformer tokens (N, T, 64) are of this form.

Differs from batch norm: statistics per sample; no centring and no bias, so a constant channel is not removed; the same in training
and evaluation, independent of the batch. Differs from papers: many models have eps=1e-6; some checkpoints keep weight - 1.
The mean of squares is taken as var + mean², which does not cancel.
Cost: 2 passes over x forward, 2 over x and dy backward. The trailing form is torch's operator.
Fails when: a large common mean carries no information and drowns what does.
Reference: Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.kernels.choose import prefer_torch
from normsmith.methods._base import Normalizer
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(cells: Moments, batch: None, weight: Tensor | None, *, eps: float) -> Standardized:
    return Standardized(cells.pool(1), weight, None, eps, centered=False)


class RMSNorm(Normalizer):
    """RMS norm over (N, C, *spatial), or over trailing dimensions; the card is `normsmith show rms`."""

    takes_shape = True

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        eps: float | None = None,
        affine: bool = True,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, bias=False, act=act, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if isinstance(self.num_features, tuple):
            return self.activated(F.rms_norm(x, self.num_features, self.weight, self.eps))
        if (
            mask is None
            and prefer_torch(
                "rms" if torch.is_grad_enabled() and x.dim() > 2 else "rms_eval", x, activated=self.bend is not None
            )
            and (self.weight is None or self.weight.dtype == x.dtype)
        ):
            y = F.rms_norm(x, x.shape[1:], None, self.eps)
            return self.activated(y if self.weight is None else y * self.weight.view(-1, *[1] * (x.dim() - 2)))
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return normalize(x, partial(mix, eps=eps), self.weight, sees="cells", mask=mask, act=self.bend).y

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        if self.bend is not None or (spatial_dims > 0 and isinstance(self.num_features, int)):
            return None
        sizes = list(self.num_features) if isinstance(self.num_features, tuple) else self.num_features
        return nn.RMSNorm(sizes, eps=self.eps, elementwise_affine=self.affine)

    def options(self) -> dict[str, object]:
        return {"eps": self.eps, "affine": self.affine, **self.own_activation()}

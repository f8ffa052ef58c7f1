"""Batch renormalization: batch norm corrected towards its running statistics, so that training sees what evaluation will.

Formula: with s = sqrt(var + eps) of the batch and s_run = sqrt(running_var + eps), as the buffers stood before this batch,
r = clip(s / s_run, 1/r_max, r_max), d = clip((mean - running_mean) / s_run, -d_max, d_max), both constants for the gradient:
y = ((x - mean) / s * r + d) * weight + bias. Unclipped that is (x - running_mean) / s_run. Evaluation is that of batch norm.

Differs from batch norm: a small batch's noise does not reach the output beyond the clips. `r_max=1, d_max=0` equals batch norm.
Differs from the paper: it starts there and moves to r_max=3, d_max=5 over the first thousands of steps, because at the start the
running statistics are of nothing; `r_max` and `d_max` are attributes that a schedule may set, and start at their last values. The
paper keeps a running s, most code and we the running variance, unbiased as torch keeps it; eps is inside both roots.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 1.
Fails when: the running statistics are far from the data (a high learning rate, a low momentum) and the clips are wide. Under activation
checkpointing the recomputed forward finds them moved by this batch, so that r and d differ a little from those of the first.
Reference: Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", NeurIPS 2017.
"""

from functools import partial
from typing import Any, Unpack

from torch import Tensor

from normsmith.affine import Standardized
from normsmith.arithmetic import Towards
from normsmith.errors import OptionError
from normsmith.methods._options import Policies
from normsmith.methods._running import RunningNormalizer
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: None,
    batch: Moments,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    r_max: float,
    d_max: float,
    eps: float,
) -> Standardized:
    return Standardized(batch, weight, bias, eps, towards=Towards(running_mean, running_var, r_max, d_max))


class BatchRenorm(RunningNormalizer):
    """Batch renormalization over (N, C, *spatial), any number of spatial dimensions; the card is `normsmith show renorm`."""

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        affine: bool = True,
        track_running_stats: bool = True,
        **running: Unpack[Policies],
    ) -> None:
        if not r_max >= 1 or not d_max >= 0:
            raise OptionError(
                f"BatchRenorm expects r_max of 1 or more and d_max of 0 or more: got r_max={r_max!r}, d_max={d_max!r}; 1 and 0 "
                "are batch norm, 3 and 5 the paper's"
            )
        if not track_running_stats:
            raise OptionError(
                "BatchRenorm expects running statistics to correct towards: got track_running_stats=False; use BatchNorm"
            )
        super().__init__(num_features, affine=affine, **running)
        self.r_max = r_max
        self.d_max = d_max

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        if self.uses_running_stats or self.falls_back(x, x.numel() // self.num_features, "channel", CURE):
            return self.by_running(x, mask)
        options = partial(mix, r_max=self.r_max, d_max=self.d_max, eps=self.eps)
        tensors = (*self.constants(), self.weight, self.bias)
        result = normalize(x, options, *tensors, sees="batch", mask=mask, world=self.world, act=self.bend)
        assert result.batch is not None
        self.update(result.batch)
        return result.y

    def options(self) -> dict[str, Any]:
        return {"r_max": self.r_max, "d_max": self.d_max, **super().options()}

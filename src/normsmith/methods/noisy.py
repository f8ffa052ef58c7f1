"""Noisy batch norm: batch norm whose output gets random means and spreads again in training, to shift what the next layer sees.

Formula: y = s * batch_norm(x) + m. For each channel mu ~ U(-mean_range, mean_range) and sigma ~ U(1, std_range); then for each element
m ~ U(mu - mean_jitter, mu + mean_jitter) and s ~ N(sigma, std_jitter), anew at every forward. Evaluation has no noise.

Differs from batch norm: the output has neither mean 0 nor variance 1, and they change from step to step: an experiment that shows how
little batch norm owes to steady distributions, not a layer for use. No noise (ranges 0 and 1, jitters 0) is batch norm.
Differs from the paper: "for each sample" of a feature map is read as each element; `per="cell"` draws one m and s per sample and
channel. Public copies have other laws. s may be negative, rarely. The noise comes after weight and bias, and is a constant for the
gradient.
The draws come from torch's global generator of the device, in float32, in this order: mu (C), sigma (C), m, s.
Cost: 2 passes over x forward and 2 over x and dy backward, as batch norm; per element 6 more over noise that is as large as x.
Fails when: used for anything but that experiment.
Reference: Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?", NeurIPS 2018.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize


def mix(
    cells: None,
    batch: Moments | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    *,
    eps: float,
) -> Standardized:
    if running_mean is not None and running_var is not None:
        batch = Moments(running_mean, running_var, 1)
    assert batch is not None
    if mean is not None and std is not None:  # per cell: still an affine map of x
        weight, bias = std if weight is None else std * weight, mean if bias is None else std * bias + mean
    return Standardized(batch, weight, bias, eps)


class NoisyNorm(RunningNormalizer):
    """Noisy batch norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show noisy`."""

    def __init__(
        self,
        num_features: int,
        *,
        mean_range: float = 0.5,
        std_range: float = 1.25,
        mean_jitter: float = 0.1,
        std_jitter: float = 0.1,
        per: Literal["element", "cell"] = "element",
        **running: Unpack[Running],
    ) -> None:
        super().__init__(num_features, **running)
        noise = {"mean_range": mean_range, "std_range": std_range, "mean_jitter": mean_jitter, "std_jitter": std_jitter}
        for name, value in noise.items():
            least = 1 if name == "std_range" else 0
            if not value >= least:
                raise OptionError(f"NoisyNorm expects {name} of {least} or more, {least} for no noise: got {value!r}")
        one_of("NoisyNorm", "per", per, ("element", "cell"))
        self.mean_range, self.std_range, self.mean_jitter, self.std_jitter = noise.values()
        self.per = per

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        single = self.falls_back(x, x.numel() // self.num_features, "channel", CURE)
        if not self.training and self.uses_running_stats:
            return self.by_running(x, mask)
        noise = self._draw(x) if self.training else (None, None)
        running = self.constants() if self.uses_running_stats or single else (None, None)
        in_mix = noise if self.per == "cell" else (None, None)
        last = noise[0] is None or self.per == "cell"
        result = normalize(
            x,
            partial(mix, eps=self.eps),
            *running,
            self.weight,
            self.bias,
            *in_mix,
            sees="nothing" if running[0] is not None else "batch",
            mask=mask,
            world=self.world,
            act=self.bend if last else None,
        )
        if result.batch is not None:
            self.update(result.batch)
        mean, std = noise
        if last or mean is None or std is None:
            return result.y
        shaken = result.y * std + mean
        return self.activated((shaken if mask is None else torch.where(mask, shaken, 0)).to(x.dtype))

    def _draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What to add and what to multiply with, for each element or cell."""
        shape = x.shape if self.per == "element" else x.shape[:2]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32

        def draw(law: Callable[..., Tensor], size: Sequence[int]) -> Tensor:
            return law(size, device=x.device, dtype=torch.float32).to(wide)

        per_channel = [-1] + [1] * (len(shape) - 2)
        mean = draw(torch.rand, (self.num_features,)).mul_(2).sub_(1).mul_(self.mean_range)
        std = draw(torch.rand, (self.num_features,)).mul_(self.std_range - 1).add_(1)
        means = draw(torch.rand, shape).mul_(2).sub_(1).mul_(self.mean_jitter).add_(mean.view(per_channel))
        stds = draw(torch.randn, shape).mul_(self.std_jitter).add_(std.view(per_channel))
        return means, stds

    def options(self) -> dict[str, Any]:
        own = ("mean_range", "std_range", "mean_jitter", "std_jitter", "per")
        return {**{name: getattr(self, name) for name in own}, **super().options()}

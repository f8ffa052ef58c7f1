"""Switchable whitening: a learned blend of means and covariances of batch, instance and layer, some whole, some only their variances.

Formula: y = P_T(sum_k q_k Sigma_k + eps I) (x - sum_k p_k mean_k) * weight_c + bias_c, per sample and group of channels, with
p = softmax(mean_weight), q = softmax(var_weight), both of equal parts at first, and P_T of `iterations` Newton-Schulz steps, as in
`iterative_whitening`. The `parts`, k: "batch_whitening" and "instance_whitening" have the covariance of batch and of sample; "batch" and
"instance" have its diagonal; "layer" the variance over channels and positions of the sample, times I. In evaluation the batch's have the
running mean and covariance.

Differs from batch norm: whitens, learns which statistics to use, and keeps working for small batches. One-hot logits are, up to the
Newton-Schulz steps, ZCA whitening of batch or sample, batch norm, instance norm, or layer norm. Differs from switchable norm: the two
whitening parts. The authors have forms of 2, 3 and 5 parts, here any. Take the logits out of weight decay.
Cost: 2 passes over x forward, 2 over x and dy backward; a covariance and T steps for every sample.
Fails when: the batches of evaluation differ from those of training and the batch has the larger part.
Reference: Pan, Zhan, Shi, Tang and Luo, "Switchable Whitening for Deep Representation Learning", ICCV 2019.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from normsmith.covariance import Covariance
from normsmith.errors import OptionError
from normsmith.methods._matrices import check_iterations, newton_schulz
from normsmith.methods._options import Running
from normsmith.methods._parts import Ratios, named, widened
from normsmith.methods._whitening import WhiteningNormalizer, finished
from normsmith.moments import Moments
from normsmith.plan import Sees
from normsmith.whitening import Mix, Triple, whiten_by

PARTS = ("batch_whitening", "instance_whitening", "batch", "instance", "layer")


def mix(
    cells: Covariance,
    batch: Covariance | None,
    mean_ratios: Tensor,
    var_ratios: Tensor,
    running_mean: Tensor | None,
    running_cov: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    parts: tuple[str, ...],
    iterations: int,
    eps: float,
) -> Triple:
    if running_mean is not None and running_cov is not None:
        batch = Covariance.made(running_mean, running_cov, 1)
    mean, cov = cells.mean, 0 * cells.cov  # of every sample, whatever the parts; their means by what they differ, for precision
    for part, p, q in zip(parts, mean_ratios.unbind(), var_ratios.unbind(), strict=True):
        one_mean, one_cov = _statistic(part, cells, batch)
        mean, cov = mean + p * (one_mean - cells.mean), cov + q * one_cov
    return finished(mean, newton_schulz(cov, eps, iterations), weight, bias)


def _statistic(part: str, cells: Covariance, batch: Covariance | None) -> tuple[Tensor, Tensor]:
    """Mean and covariance of one part."""
    diagonal = torch.eye(cells.cov.shape[-1], dtype=torch.bool, device=cells.cov.device)
    if part == "layer":
        whole = Moments(cells.mean, cells.var, 1).pool(1)
        return whole.mean, torch.where(diagonal, whole.var[..., None, None], 0)
    source = batch if part.startswith("batch") else cells
    assert source is not None
    if part.endswith("whitening"):
        return source.mean, source.cov
    return source.mean, torch.where(diagonal, source.cov, 0)


class SwitchableWhitening(WhiteningNormalizer):
    """Switchable whitening over (N, C, *spatial), any number of spatial dimensions; `normsmith show switchable_whitening`."""

    parameter_kinds: ClassVar[dict[str, str]] = {"mean_weight": "logits", "var_weight": "logits"}

    def __init__(
        self,
        num_features: int,
        *,
        parts: Sequence[str] = PARTS,
        iterations: int = 5,
        group_size: int | None = 16,
        **options: Unpack[Running],
    ) -> None:
        check_iterations("SwitchableWhitening", iterations)
        self.parts, self.iterations = _checked(parts), iterations
        self.use_batch = any(part.startswith("batch") for part in self.parts)
        if not self.use_batch:
            options["track_running_stats"] = False
        super().__init__(num_features, group_size=group_size, **options)
        where: dict[str, Any] = {"device": options.get("device"), "dtype": options.get("dtype")}
        self.mean_weight = nn.Parameter(torch.ones(len(self.parts), **where))
        self.var_weight = nn.Parameter(torch.ones(len(self.parts), **where))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and equal parts of all statistics."""
        super().reset_parameters()
        for name in {"mean_weight", "var_weight"} & self._parameters.keys():  # not there yet when the base class calls
            nn.init.ones_(getattr(self, name))

    def mix(self) -> Mix:
        return partial(mix, parts=self.parts, iterations=self.iterations, eps=self.eps)

    def whitener(self, cov: Tensor) -> Tensor:
        """The matrix that a covariance alone would have; what evaluation has depends on the sample too."""
        return newton_schulz(cov, self.eps, self.iterations)

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.one_mask(x, mask, lengths)
        alone = x.numel() == self.num_features and self.process_group is None  # one vector, which has no covariance to keep
        by_running = self.running_mean is not None and (self.uses_running_stats or (alone and self.on_single == "running"))
        constants: tuple[Tensor | None, Tensor | None] = (None, None)
        if by_running and self.use_batch:
            constants = widened(self.constants()[0]).view(1, -1), widened(self.covariance()).unsqueeze(0)
        sees: Sees = "both" if self.use_batch and not by_running else "cells"
        tensors = (*self.weights(), *constants, self.weight, self.bias)
        result = whiten_by(x, self.mix(), *tensors, groups=self.groups, sees=sees, mask=mask, world=self.world)
        if result.batch is not None and not alone:
            self.update(result.batch)
        return self.activated(result.y)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The proportions of the means and of the covariances."""
        return widened(self.mean_weight).softmax(0), widened(self.var_weight).softmax(0)

    def ratios(self) -> Ratios:
        """What means and covariances are made of: {"mean": {"batch_whitening": 0.2, ...}, "var": {...}}."""
        return named(self.parts, *self.weights())

    def options(self) -> dict[str, Any]:
        inherited = {key: value for key, value in super().options().items() if key != "running"}
        return {"parts": self.parts, "iterations": self.iterations, **inherited}


def _checked(parts: Sequence[str]) -> tuple[str, ...]:
    chosen = () if isinstance(parts, str) else tuple(parts)
    if not chosen or len(set(chosen)) != len(chosen) or set(chosen) - set(PARTS):
        raise OptionError(
            f"SwitchableWhitening expects parts as a sequence of different names of {', '.join(map(repr, PARTS))}: got {parts!r}"
        )
    return chosen

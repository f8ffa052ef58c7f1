"""What a weight can be made of, as modules for `torch.nn.utils.parametrize`: w is computed at each forward, gradients go through it.

All take the weight as rows, one for each output channel (`_rows.py`). Rows of zeros give rows of zeros, with finite gradients.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from normsmith.methods._base import one_of
from normsmith.surroundings import without_autocast
from normsmith.weights._roots import inverse_root
from normsmith.weights._rows import Rows

Convention = Literal["readme", "timm"]


def _unit(rows: Tensor, eps: float) -> Tensor:
    """Rows of length 1; shorter ones than eps are divided by that."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp_min(eps)


class WeightNorm(nn.Module):
    """w = g v / ||v||, row by row (Salimans and Kingma, 2016); g and v are kept as torch keeps them, so that its states load.

    Not torch's own module, as that gives NaN for a row of zeros, and with groups in a transposed convolution ties rows together.
    """

    def __init__(self, rows: Rows, eps: float) -> None:
        super().__init__()
        self.rows, self.eps = rows, eps

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        """w from the length and the direction of its rows."""
        return self.rows.back(_unit(self.rows.of(v), self.eps) * g.reshape(-1, 1))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """g and v that make this weight."""
        return torch.linalg.vector_norm(self.rows.of(weight), dim=1).view(self.rows.column()), weight


class CenteredWeightNorm(nn.Module):
    """w = g (v - mean) / ||v - mean||, row by row (Huang et al., 2017); g is the constant sqrt(2) there, or learned."""

    gain: Tensor

    def __init__(self, rows: Rows, eps: float, gain: float, learn_gain: bool, like: Tensor) -> None:
        super().__init__()
        self.rows, self.eps = rows, eps
        value = torch.full((rows.number, 1) if learn_gain else (), gain, dtype=like.dtype, device=like.device)
        if learn_gain:
            self.gain = nn.Parameter(value)
        else:
            self.register_buffer("gain", value)

    def forward(self, v: Tensor) -> Tensor:
        """w from v."""
        rows = self.rows.of(v)
        return self.rows.back(_unit(rows - rows.mean(1, keepdim=True), self.eps) * self.gain)


class WeightStandardization(nn.Module):
    """w = (v - mean) / deviation, row by row (Qiao et al., 2019).

    The authors' code (`"readme"`) divides by the unbiased deviation plus eps, timm's layers by sqrt(biased variance + eps).
    """

    def __init__(self, rows: Rows, eps: float, convention: Convention) -> None:
        super().__init__()
        self.rows, self.eps, self.convention = rows, eps, convention
        one_of("weight_standardization", "convention", convention, ("readme", "timm"))

    def forward(self, v: Tensor) -> Tensor:
        """w from v."""
        rows = self.rows.of(v)
        away = rows - rows.mean(1, keepdim=True)
        if self.convention == "readme":
            deviation = torch.linalg.vector_norm(away, dim=1, keepdim=True) / math.sqrt(self.rows.fan_in - 1)
            return self.rows.back(away / (deviation + self.eps))
        return self.rows.back(away * (away.square().mean(1, keepdim=True) + self.eps).rsqrt())


class ScaledWeightStandardization(nn.Module):
    """w = gain · gamma / sqrt(fan-in) · (v - mean) / sqrt(var + eps), with a learned gain (Brock et al., 2021; timm's layers).

    `gamma` is a constant for the activation: 1.7139 for ReLU.
    """

    def __init__(self, rows: Rows, eps: float, gain: float, gamma: float, like: Tensor) -> None:
        super().__init__()
        self.standardize = WeightStandardization(rows, eps, "timm")
        self.gain = nn.Parameter(torch.full((rows.number, 1), gain, dtype=like.dtype, device=like.device))
        self.scale = gamma / math.sqrt(rows.fan_in)

    def forward(self, v: Tensor) -> Tensor:
        """w from v."""
        rows = self.standardize.rows
        return rows.back(rows.of(self.standardize(v)) * (self.gain * self.scale))


class Orthogonal(nn.Module):
    """w = (V V^T)^(-1/2) V, the nearest matrix with orthonormal rows (Huang et al., 2018); columns, if there are more rows than columns.

    In float64, and differentiable where torch's eigendecomposition is not: at matrices that are orthogonal already.
    """

    def __init__(self, rows: Rows, eps: float) -> None:
        super().__init__()
        self.rows, self.eps = rows, eps

    def forward(self, v: Tensor) -> Tensor:
        """w from v."""
        with without_autocast(v):
            rows = self.rows.of(v).double()
            tall = rows.shape[0] > rows.shape[1]
            near = rows @ inverse_root(rows.mT @ rows, self.eps) if tall else inverse_root(rows @ rows.mT, self.eps) @ rows
            return self.rows.back(near.to(v.dtype))

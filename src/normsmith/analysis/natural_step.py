"""The Fisher matrix of a whole small network, and the step of natural gradient descent that goes with it.

Formula: F = E[g gᵀ] over samples and labels drawn from the model, g the gradient of a sample's negative log-likelihood at all trainable
parameters as one vector; step = -(F + damping · I)⁻¹ ∇L, L the mean negative log-likelihood of the batch with the data's labels. A
least-squares problem of a linear model is solved in a single step; directions without curvature and without damping are left alone.
Reference: Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 1998.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis._likelihood import Family, Likelihood, logits
from normsmith.analysis._still import Still, Weights, gradients, holding
from normsmith.analysis.blocks import LARGEST, ExactBlock
from normsmith.errors import InputError, OptionError
from normsmith.surgery._models import Forward


@dataclass(frozen=True, eq=False)
class Fisher:
    """The Fisher matrix over all trainable parameters, float64, and where each of them lies in it."""

    matrix: Tensor
    slices: dict[str, slice]

    def block(self, one: str, other: str) -> Tensor:
        """E[g_one g_otherᵀ] of two parameters."""
        return self.matrix[self.slices[one], self.slices[other]]

    @property
    def mass(self) -> Tensor:
        """The share of each pair of parameters in the squared Frobenius norm: how much a block diagonal leaves out."""
        names = list(self.slices)
        squares = torch.stack([torch.stack([self.block(a, b).square().sum() for b in names]) for a in names])
        return squares / squares.sum()

    @property
    def whole(self) -> ExactBlock:
        """Eigenvalues, rank and condition of all of it."""
        return ExactBlock(self.matrix)


@dataclass(frozen=True, eq=False)
class NaturalStep:
    """What to add to each trainable parameter, and what it follows from."""

    step: Weights
    gradient: Weights
    fisher: Fisher
    decrease: float  # of the mean loss, by the quadratic model with curvature F + damping · I


def fisher_matrix(
    model: nn.Module,
    batch: Any,
    *,
    likelihood: Family = "categorical",
    draws: int | None = None,
    forward: Forward | None = None,
) -> Fisher:
    """The Fisher matrix of a model with at most 10 000 trainable parameters, over the samples of a batch.

    The arguments are those of `fisher_blocks`; labels are taken in expectation unless `draws` says how many are drawn. The model runs in
    evaluation and is afterwards as it was. It takes one forward, and a backward for each sample and label.
    """
    family = Likelihood("fisher_matrix", likelihood, False, draws)
    with holding(model, "fisher_matrix", forward, evaluating=True) as still:
        return _fisher(still, batch, family, still.weights())


def natural_step(
    model: nn.Module,
    batch: Any,
    *,
    damping: float = 1e-3,
    likelihood: Family = "categorical",
    draws: int | None = None,
    forward: Forward | None = None,
) -> NaturalStep:
    """The natural gradient step of a model with at most 10 000 trainable parameters, for a batch of (input, target).

    Nothing is applied: `step[name]` is what to add to the parameter of that name, times a step size. `damping` is added to every eigenvalue
    of the Fisher matrix; with 0 directions of no curvature get no step. The other arguments are those of `fisher_matrix`. The model runs in
    evaluation and is afterwards as it was.
    """
    if not math.isfinite(damping) or damping < 0:
        raise OptionError(f"natural_step expects damping as a number from 0: got {damping!r}")
    family = Likelihood("natural_step", likelihood, False, draws)
    with holding(model, "natural_step", forward, evaluating=True) as still:
        weights = still.weights()
        fisher = _fisher(still, batch, family, weights)
        z = logits(still.call(lambda: still.output(batch), weights), still.verb)
        slopes = gradients(family.loss(z, still.target(batch)) / z.shape[0], weights)
    vector = _flat(list(slopes.values()))
    values, vectors = torch.linalg.eigh(fisher.matrix)
    values = values.clamp_min(0)
    real = (values > values[-1] * len(values) * torch.finfo(values.dtype).eps) | (damping > 0)
    inverse = torch.where(real, 1 / (values + damping), 0)
    step = -(vectors @ (inverse * (vectors.T @ vector)))
    parts = {n: step[part].view_as(slopes[n]).to(slopes[n].dtype) for n, part in fisher.slices.items()}
    return NaturalStep(parts, slopes, fisher, -(vector @ step).item() / 2)


def _fisher(still: Still, batch: Any, family: Likelihood, weights: Weights) -> Fisher:
    size = sum(w.numel() for w in weights.values())
    if size > LARGEST:
        raise InputError(
            f"{still.verb} expects at most {LARGEST} trainable parameters: got {size}; fisher_blocks takes more, or freeze some"
        )
    z = logits(still.call(lambda: still.output(batch), weights), still.verb)
    total = torch.zeros((size, size), dtype=torch.float64, device=z.device)
    leaves = list(weights.values())
    for u in family.gradients(z, None):
        rows = []
        for sample in range(z.shape[0]):
            one = torch.zeros_like(u)
            one[sample] = u[sample]
            found = torch.autograd.grad(z, leaves, one, retain_graph=True, allow_unused=True, materialize_grads=True)
            rows.append(_flat(found))
        stacked = torch.stack(rows)
        total += stacked.T @ stacked / z.shape[0]
    if not bool(total.isfinite().all()):
        raise InputError(
            f"{still.verb} expects finite gradients: got NaN or infinity; look at the batch, or for an overflow in the model"
        )
    slices, start = {}, 0
    for name, w in weights.items():
        slices[name] = slice(start, start + w.numel())
        start += w.numel()
    return Fisher(total, slices)


def _flat(tensors: Any) -> Tensor:
    """All tensors as one float64 vector."""
    return torch.cat([t.detach().double().flatten() for t in tensors])

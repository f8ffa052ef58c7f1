"""A block of the Fisher information of one layer, whole or as a Kronecker product, and how well conditioned it is."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from normsmith.errors import InputError, OptionError

LARGEST = 10_000  # rows of a matrix: 800 MB in float64


@dataclass(frozen=True, eq=False)
class ExactBlock:
    """E[vec(dW) vec(dW)ᵀ] with dW = dh oᵀ of shape (out, in), flattened row by row: a float64 matrix of out · in rows."""

    matrix: Tensor

    @cached_property
    def eigenvalues(self) -> Tensor:
        """In ascending order, not below zero."""
        values: Tensor = torch.linalg.eigvalsh(self.matrix)
        return values.clamp_min(0)

    @property
    def rank(self) -> int:
        """How many eigenvalues are not zero but for rounding."""
        return _rank(self.eigenvalues)

    def condition(self, damping: float = 0.0) -> float:
        """Largest eigenvalue by smallest, with `damping` times their mean added to each; infinite for a singular block without damping."""
        return _condition(self.eigenvalues, damping)

    @property
    def distance_to_identity(self) -> float:
        """||F - I|| / ||I||, of Frobenius norms."""
        size = self.matrix.shape[0]
        identity = torch.eye(size, dtype=self.matrix.dtype, device=self.matrix.device)
        distance: float = torch.linalg.matrix_norm(self.matrix - identity).item()
        return distance / math.sqrt(size)


@dataclass(frozen=True, eq=False)
class KroneckerBlock:
    """G ⊗ A with A = E[o oᵀ] and G = E[dh dhᵀ], as if inputs and gradients were independent; both float64."""

    A: Tensor  # of the inputs of the layer, with a 1 appended where there is a bias
    G: Tensor  # of the gradients at its outputs

    @property
    def matrix(self) -> Tensor:
        """The product itself, in the order of `ExactBlock`."""
        size = self.A.shape[0] * self.G.shape[0]
        if size > LARGEST:
            raise InputError(f"a Fisher matrix is expected to have at most {LARGEST} rows: got {size}; work with A and G")
        return torch.kron(self.G, self.A)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """Of the product, in ascending order, not below zero."""
        ours, theirs = self._factors
        return (ours.unsqueeze(1) * theirs).flatten().sort().values

    @property
    def rank(self) -> int:
        """How many eigenvalues are not zero but for rounding."""
        return math.prod(map(_rank, self._factors))

    def condition(self, damping: float = 0.0) -> float:
        """κ(A) κ(G), each with `damping` times its mean eigenvalue added; infinite for a singular block without damping."""
        return math.prod(_condition(values, damping) for values in self._factors)

    @property
    def distance_to_identity(self) -> float:
        """||G ⊗ A - I|| / ||I||, of Frobenius norms."""
        size = self.A.shape[0] * self.G.shape[0]
        square = (self.A.norm() * self.G.norm()).square() - 2 * self.A.trace() * self.G.trace() + size
        return math.sqrt(max(square.item(), 0) / size)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigvalsh(self.G).clamp_min(0), torch.linalg.eigvalsh(self.A).clamp_min(0)


Block = ExactBlock | KroneckerBlock


def _zero(eigenvalues: Tensor) -> Tensor:
    """Below this an eigenvalue is rounding."""
    return eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps


def _rank(eigenvalues: Tensor) -> int:
    return int((eigenvalues > _zero(eigenvalues)).sum())


def _condition(eigenvalues: Tensor, damping: float) -> float:
    if not math.isfinite(damping) or damping < 0:
        raise OptionError(f"condition expects damping as a number from 0: got {damping!r}")
    smallest = eigenvalues[0] if eigenvalues[0] > _zero(eigenvalues) else torch.zeros_like(eigenvalues[0])
    more = damping * eigenvalues.mean()
    if smallest + more <= 0:
        return math.inf
    return ((eigenvalues[-1] + more) / (smallest + more)).item()

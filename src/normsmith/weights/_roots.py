"""The inverse square root of a symmetric positive matrix, differentiable any number of times, also where eigenvalues are equal.

The derivative through an eigendecomposition divides by differences of eigenvalues, which are all zero for an orthogonal weight. That of
the root itself divides by sums: with P = G^(1/2), dG = P dP + dP P, a Sylvester equation.
"""

from typing import Any

import torch
from torch import Tensor


class _Sylvester(torch.autograd.Function):
    """X of P X + X P = Y, P symmetric and positive."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, y: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(p)
        x: Tensor = vectors @ ((vectors.mT @ y @ vectors) / (values[:, None] + values[None])) @ vectors.mT
        ctx.save_for_backward(p, x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        p, x = ctx.saved_tensors
        dy = _Sylvester.apply(p, grads[0])  # type: ignore[no-untyped-call]
        return -(dy @ x.mT + x.mT @ dy), dy


class _InverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, eps: float) -> Tensor:
        values, vectors = torch.linalg.eigh(g)
        ctx.save_for_backward(g)
        ctx.eps = eps
        found: Tensor = (vectors * values.clamp_min(eps).rsqrt()) @ vectors.mT
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = ctx.saved_tensors
        root = _InverseRoot.apply(g, ctx.eps)  # type: ignore[no-untyped-call]
        inside = root @ grads[0] @ root
        return -_Sylvester.apply(_root(g, root, ctx.eps), (inside + inside.mT) / 2), None  # type: ignore[no-untyped-call]


def _root(g: Tensor, inverse_root: Tensor, eps: float) -> Tensor:
    """G^(1/2), positive also where eigenvalues of G are zero."""
    return (g + eps * torch.eye(len(g), dtype=g.dtype, device=g.device)) @ inverse_root


def inverse_root(g: Tensor, eps: float) -> Tensor:
    """g^(-1/2); eigenvalues count as `eps` at least."""
    found: Tensor = _InverseRoot.apply((g + g.mT) / 2, eps)  # type: ignore[no-untyped-call]
    return found

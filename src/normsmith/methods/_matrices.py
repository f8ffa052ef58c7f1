"""From a covariance to the matrix that whitens it: functions of small matrices, (..., g, g), whose gradients stay finite and right.

The derivative of an eigenvector has 1 / (difference of eigenvalues) in it, which autograd of torch.linalg.eigh takes literally: infinite
for two that are equal, noise for two that nearly are. What matters is what becomes of it:

- Sigma^(-1/2) is smooth whatever the eigenvalues. Its square root S solves S dS + dS S = dSigma, and the solution in the basis of S is a
  division by s_i + s_j: sums, not differences. `_Roots` has that as its derivative, of any order.
- The matrix of a Cholesky factorization is smooth too; torch differentiates it by triangular solves.
- Newton-Schulz iterations are products, differentiated as such.
- Eigenvectors themselves, which PCA is made of, do turn without bound where eigenvalues meet. `_Eigen` damps that:
  difference / (difference² + tolerance²).
"""

from typing import Any

import torch
from torch import Tensor

from normsmith.covariance import Kept
from normsmith.errors import OptionError


def regular(cov: Tensor, eps: float) -> Tensor:
    """The covariance with eps added on the diagonal, or what its trace was rounded by, if that is more: then it is positive definite."""
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    shift = (trace * torch.finfo(cov.dtype).eps).clamp_min(eps)
    return cov + shift[..., None, None] * _identity(cov)


def zca(cov: Tensor, eps: float, kept: Kept | None = None) -> Tensor:
    """Sigma^(-1/2), symmetric: of all matrices that whiten the one that moves the data least."""
    finite, sigma = _sound(regular(cov, eps))
    if torch.compiler.is_compiling():
        values, vectors, step = _perturbed(sigma)
        roots = values.sqrt()
        one, other = roots.unsqueeze(-1), roots.unsqueeze(-2)
        found = vectors @ (torch.diag_embed(roots.reciprocal()) - step / (one * other * (one + other))) @ vectors.mT
    else:
        found = _Roots.apply(sigma, *_eigen(sigma, kept))[1]  # type: ignore[no-untyped-call]
    return torch.where(finite, found, torch.nan)


def pca(cov: Tensor, eps: float, kept: Kept | None = None, *, scaled: bool = True) -> Tensor:
    """The eigenvectors in rows, in the order of falling eigenvalues, each divided by the root of its own if `scaled`.

    The sign of an eigenvector is free; its largest element is made positive.
    """
    finite, sigma = _sound(regular(cov, eps))
    if torch.compiler.is_compiling():
        values, vectors, step = _perturbed(sigma)
        values, vectors = values + step.diagonal(dim1=-2, dim2=-1), vectors + vectors @ (step * _turning(values))
    else:
        values, vectors = _Eigen.apply(sigma, *_eigen(sigma, kept))  # type: ignore[no-untyped-call]
    rows = vectors.mT.flip(-2)
    largest = rows.detach().abs().argmax(-1, keepdim=True)
    rows = rows * torch.where(rows.detach().gather(-1, largest) < 0, -1, 1)
    if scaled:
        rows = rows * values.flip(-1).rsqrt().unsqueeze(-1)
    return torch.where(finite, rows, torch.nan)


def cholesky(cov: Tensor, eps: float) -> Tensor:
    """L^(-1) of Sigma = L Lᵀ, lower triangular."""
    finite, sigma = _sound(regular(cov, eps))
    lower, _ = torch.linalg.cholesky_ex(sigma)
    return torch.where(finite, torch.linalg.solve_triangular(lower, _identity(sigma).expand_as(sigma), upper=False), torch.nan)


def newton_schulz(cov: Tensor, eps: float, iterations: int) -> Tensor:
    """Sigma^(-1/2) by so many steps P <- (3 P - P³ S) / 2 from the identity, with S = Sigma / trace.

    Beside P runs S P: P <- R P with R = (3 I - P (S P)) / 2 is the same, but for rounding, which the other form lets grow.
    """
    sigma = regular(cov, eps)
    trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity, other = _identity(cov), sigma / trace
    found = step = (3 * identity - other) / 2
    for _ in range(iterations - 1):
        other = other @ step
        step = (3 * identity - found @ other) / 2
        found = step @ found
    return found * trace.rsqrt()


def condition(cov: Tensor, eps: float) -> Tensor:
    """The largest eigenvalue over the smallest, of what is inverted."""
    values: Tensor = torch.linalg.eigvalsh(regular(cov.double(), eps))
    return values[..., -1] / values[..., 0]


def check_iterations(name: str, iterations: int) -> None:
    """Raise for a number of steps that cannot be."""
    if type(iterations) is not int or iterations < 1:
        raise OptionError(
            f"{name} expects iterations, the steps of Newton-Schulz, as a positive integer: got {iterations!r}; try 5"
        )


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _sound(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Where the matrices are finite, and the identity elsewhere, as a factorization of NaN is an error."""
    finite = sigma.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return finite, torch.where(finite, sigma, _identity(sigma))


def _perturbed(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and eigenvectors as constants, and in their basis what Sigma is beside them: zero, but its gradient is that of Sigma.

    Functions of all three that are right to first order have the right gradient, in operations that a compiler can follow; where they
    are differentiated more than once the classes below are needed.
    """
    values, vectors = torch.linalg.eigh(sigma.detach())
    values = values.clamp_min(torch.finfo(values.dtype).tiny)
    return values, vectors, vectors.mT @ sigma @ vectors - torch.diag_embed(values)


def _eigen(sigma: Tensor, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues in rising order and eigenvectors in columns, as constants; from what is kept if they are there, else put there."""
    found = None if kept is None else kept.get("eigen")
    if found is None:
        values, vectors = torch.linalg.eigh(sigma.detach())
        found = values, vectors
        if kept is not None:
            kept["eigen"] = found
    return found


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


class _Roots(torch.autograd.Function):
    """Sigma^(1/2) and Sigma^(-1/2), of Sigma and its eigenvalues and eigenvectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sigma: Tensor, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        root = _root(values)
        return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors / root.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        root, inverse, values, vectors = ctx.saved_tensors
        right = _symmetric(grads[0]) - inverse @ _symmetric(grads[1]) @ inverse
        return _Lyapunov.apply(root, right, _root(values), vectors), None, None  # type: ignore[no-untyped-call]


def _root(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()


class _Lyapunov(torch.autograd.Function):
    """The symmetric X of root X + X root = right, for a positive definite root and a symmetric right side; its own adjoint.

    `values` and `vectors` are the eigenvalues and eigenvectors of the root.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, right: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        sums = (values.unsqueeze(-1) + values.unsqueeze(-2)).clamp_min(torch.finfo(values.dtype).tiny)
        found: Tensor = vectors @ ((vectors.mT @ right @ vectors) / sums) @ vectors.mT
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[2:], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        root, values, vectors, solution = ctx.saved_tensors
        right = _Lyapunov.apply(root, _symmetric(grads[0]), values, vectors)  # type: ignore[no-untyped-call]
        return -(right @ solution + solution @ right), right, None, None


class _Eigen(torch.autograd.Function):
    """The eigenvalues of Sigma in rising order, and its eigenvectors in columns, which are given as constants."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sigma: Tensor, values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return values.clone(), vectors.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values, vectors = ctx.saved_tensors
        inner = torch.diag_embed(grads[0]) + (vectors.mT @ grads[1]) * _turning(values)
        return _symmetric(vectors @ inner @ vectors.mT), None, None


def _turning(values: Tensor) -> Tensor:
    """1 / (value_j - value_i), damped where that is less than values of this precision can tell apart; 0 on the diagonal."""
    diagonal = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
    gaps = torch.where(diagonal, 1, values.unsqueeze(-2) - values.unsqueeze(-1))  # a zero there would spoil second derivatives
    tolerance = values.detach()[..., -1, None, None] * torch.finfo(values.dtype).eps ** 0.75
    return torch.where(diagonal, 0, gaps / (gaps.square() + tolerance.square()).clamp_min(torch.finfo(values.dtype).tiny))

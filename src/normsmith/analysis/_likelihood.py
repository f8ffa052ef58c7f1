"""The loss as a log-likelihood: its gradients at a model's output, for labels drawn from the model, for all, or for those of the data."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.analysis._still import Loss
from normsmith.errors import InputError, OptionError
from normsmith.surgery._models import tensors

Family = Literal["categorical", "gaussian", "bernoulli"]


class Likelihood:
    """A family of distributions of the target given the output, or a loss of the user's own, and which labels are meant.

    categorical: softmax of logits (N, K, *positions); gaussian: the output is the mean, the variance is 1; bernoulli: a logit for each
    element. A sample's log-likelihood is the sum over its positions or elements.
    """

    def __init__(self, verb: str, family: Family | Loss, empirical: bool, draws: int | None) -> None:
        self.verb, self.empirical, self.draws = verb, empirical, draws
        self.family = family if isinstance(family, str) else None
        if self.family is not None and self.family not in _LOSSES:
            raise OptionError(
                f"{verb} expects likelihood as 'categorical', 'gaussian', 'bernoulli' or loss(output, target): got {family!r}"
            )
        if self.family is None and not empirical:
            raise OptionError(
                f"{verb} expects a named likelihood to draw labels from: got a function; name one, or say empirical=True"
            )
        if draws is not None and (type(draws) is not int or draws < 1):
            raise OptionError(f"{verb} expects draws as a positive number of labels, or None for all of them: got {draws!r}")
        self.loss: Loss = _LOSSES[family] if isinstance(family, str) else family

    def gradients(self, z: Tensor, target: Any) -> Iterator[Tensor]:
        """Gradients u of the negative log-likelihood at the output z, such that E[u uᵀ] of each sample is the sum over those yielded."""
        if self.empirical:
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                loss = self.loss(leaf, target)
            yield torch.autograd.grad(loss, leaf)[0]
            return
        with torch.no_grad():
            if self.draws is None:
                yield from self._all(z.detach())
            else:
                for _ in range(self.draws):
                    yield self._drawn(z.detach()) / math.sqrt(self.draws)

    def _drawn(self, z: Tensor) -> Tensor:
        if self.family == "gaussian":
            return torch.randn_like(z)
        if self.family == "bernoulli":
            return z.sigmoid() - torch.bernoulli(z.sigmoid())
        p = z.softmax(1)
        flat = p.movedim(1, -1)
        labels = torch.multinomial(flat.reshape(-1, p.shape[1]), 1).view(flat.shape[:-1])
        return p - F.one_hot(labels, p.shape[1]).movedim(-1, 1).to(p.dtype)

    def _all(self, z: Tensor) -> Iterator[Tensor]:
        """The expectation itself: one for each class, or for each element of the output of a sample."""
        if self.family == "categorical":
            if z.dim() != 2:
                raise OptionError(
                    f"{self.verb} expects logits of shape (N, K) where draws=None takes all labels: got {tuple(z.shape)}; say draws=1"
                )
            p = z.softmax(1)
            for label in range(z.shape[1]):
                one = torch.zeros_like(p)
                one[:, label] = 1
                yield (p - one) * p[:, label : label + 1].sqrt()
            return
        spread = torch.ones_like(z) if self.family == "gaussian" else (z.sigmoid() * (-z).sigmoid()).sqrt()
        for index in range(z[0].numel()):
            one = torch.zeros_like(z).flatten(1)
            one[:, index] = spread.flatten(1)[:, index]
            yield one.view_as(z)


def logits(output: Any, verb: str) -> Tensor:
    """The tensor that the likelihood is about: the output, its `logits`, or its only floating tensor; (N, ...)."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = [named] if isinstance(named, Tensor) else tensors(output)
    if len(found) != 1 or found[0].dim() < 2:
        shapes = [tuple(t.shape) for t in found]
        raise InputError(
            f"{verb} expects a model that returns one tensor (N, K, ...): got {type(output).__name__} with {shapes}; "
            "pass forward=, a function of model and batch that returns it"
        )
    return found[0]


def _squared(z: Tensor, target: Any) -> Tensor:
    found: Tensor = (z - target).square().sum() / 2
    return found


def _cross_entropy(z: Tensor, target: Any) -> Tensor:
    return F.cross_entropy(z, target, reduction="sum")


def _binary(z: Tensor, target: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(z, torch.as_tensor(target).to(z.dtype), reduction="sum")


_LOSSES: dict[str, Loss] = {"categorical": _cross_entropy, "gaussian": _squared, "bernoulli": _binary}

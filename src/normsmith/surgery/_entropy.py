"""Entropy minimisation: the affine parameters of normalizers are moved until the model is sure of what it says."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import InputError, ModelError
from normsmith.surgery._batches import batches_of
from normsmith.surgery._models import Forward, evaluating, run_batch, tensors
from normsmith.surgery._statistics import Keeper, Watch, check_finite, finite_so_far, watching

Optimize = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def entropy_steps(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int | None,
    forward: Forward | None,
    layers: dict[Keeper, str],
    parameters: list[nn.Parameter],
    optimize: Optimize,
) -> tuple[list[Watch], tuple[float, ...]]:
    """One step for each batch, by its statistics; the entropy before each step. The running statistics become those of all batches."""
    gradients = [(p, p.grad) for p in parameters]
    chosen = set(parameters)
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    found, finite = [], []
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(parameter in chosen)
            parameter.grad = None if parameter in chosen else parameter.grad
        optimizer = optimize(parameters)
        with evaluating(model), watching(layers, gradients=True) as watches:
            for batch in batches_of(loader, batches, "adapting"):
                with torch.enable_grad():
                    uncertainty = entropy(logits_of(run_batch(model, batch, forward)))
                    if not uncertainty.requires_grad:
                        raise ModelError(
                            "adapt by tent expects logits that depend on weight and bias of normalizers: got some that do not; call the "
                            "model with gradients in forward(model, batch)"
                        )
                    optimizer.zero_grad()
                    uncertainty.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                found.append(uncertainty.detach())
                finite.append(finite_so_far(watches))
            entropies = tuple(float(value) for value in found)
            _check(entropies, watches, finite)
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
        for parameter, grad in gradients:
            parameter.grad = grad
    return watches, entropies


def _check(entropies: tuple[float, ...], watches: list[Watch], finite: list[Tensor]) -> None:
    """Raise for the first batch that was not finite: at which layer, or behind them all; later ones have it from the step."""
    bad = [index for index, value in enumerate(entropies) if not math.isfinite(value)]
    check_finite(watches, finite[: bad[0] + 1] if bad else finite, "adapt")
    if bad:
        raise InputError(
            f"adapt by tent expects finite logits: got others for batch {bad[0]}, counted from 0; leave that batch out, or look for an "
            "overflow behind the last normalizer"
        )


def entropy(logits: Tensor) -> Tensor:
    """Of the softmax over dimension 1, the mean over all else."""
    found: Tensor = torch.special.entr(logits.softmax(1)).sum(1).mean()
    return found


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: the tensor, or what is called so, or the first one."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    found = [named] if isinstance(named, Tensor) else tensors(output)
    if not found or found[0].dim() < 2 or found[0].shape[1] < 2:
        got = f"shape {tuple(found[0].shape)}" if found else type(output).__name__
        raise InputError(
            f"adapt by tent expects logits (N, classes, *positions) of two classes or more: got {got}; return them from "
            "forward(model, batch)"
        )
    return found[0]

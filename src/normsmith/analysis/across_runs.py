"""`across_runs`: the spread of training over learning rates, which public reproductions draw for the smoothness of the loss."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis._still import Loss, Weights, difference, gradients, holding
from normsmith.errors import InputError, OptionError
from normsmith.surgery._batches import check_loader
from normsmith.surgery._models import Forward


@dataclass(frozen=True, eq=False)
class AcrossRuns:
    """What several trainings did; tensors are float64 on the CPU, with a row for each run."""

    rates: tuple[float, ...]
    losses: Tensor  # (runs, steps), each before its step
    changes: Tensor  # (runs, steps - 1), the norm of the difference of the gradients of successive steps
    weights: tuple[Weights, ...]  # where each run ended

    @property
    def loss_band(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest loss over the runs, at each step."""
        return self.losses.min(0).values, self.losses.max(0).values

    @property
    def change_band(self) -> tuple[Tensor, Tensor]:
        """The smallest and largest change of the gradient over the runs, at each step but the first."""
        return self.changes.min(0).values, self.changes.max(0).values


def across_runs(
    model: nn.Module,
    loss: Loss,
    loader: Iterable[Any],
    *,
    rates: Sequence[float] = (0.02, 0.01, 0.005, 0.001),
    steps: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    forward: Forward | None = None,
) -> AcrossRuns:
    """Train a copy of the weights of `model` with each learning rate, on the same batches with the same random numbers, and compare.

    `loss(output, target)` is a number; the target is what follows the input in a batch, or the batch itself if nothing does.
    `optimizer(parameters, lr=rate)` makes each run's optimizer. There are as many `steps` as the loader has batches, or so many, with the
    loader run through again. Running statistics move in each run by themselves. All runs take each step together, so that the loader is
    read once; the model stays in the mode it is in, training being the one meant, and is afterwards as it was.
    """
    if not rates or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise OptionError(f"across_runs expects rates as finite numbers from 0: got {rates!r}")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise OptionError(f"across_runs expects steps as a positive integer, or None for the batches there are: got {steps!r}")
    check_loader(loader, None, "across_runs")
    with holding(model, "across_runs", forward) as still:
        runs = [_Run(still.weights(), still.buffers(), optimizer, rate) for rate in rates]
        for batch in _repeated(loader, steps):
            still.start_from_here()
            for run in runs:
                run.step(still.loss(loss, batch, run.weights, run.buffers))
    if not runs[0].losses:
        raise InputError("across_runs expects a loader that yields batches: got none; check its length")
    losses = torch.stack([torch.stack(run.losses) for run in runs])
    changes = torch.stack([torch.stack(run.changes) if run.changes else losses.new_empty(0) for run in runs])
    return AcrossRuns(tuple(rates), losses, changes, tuple({n: w.detach() for n, w in run.weights.items()} for run in runs))


class _Run:
    """One training."""

    def __init__(
        self, weights: Weights, buffers: Weights, optimizer: Callable[..., torch.optim.Optimizer], rate: float
    ) -> None:
        self.weights, self.buffers = weights, buffers
        self.losses: list[Tensor] = []
        self.changes: list[Tensor] = []
        self._optimizer = optimizer(list(weights.values()), lr=rate)
        self._before: Weights | None = None

    def step(self, loss: Tensor) -> None:
        """Take a step."""
        slopes = gradients(loss, self.weights)
        self.losses.append(loss.detach().double().cpu())
        if self._before is not None:
            self.changes.append(difference(self._before, slopes))
        self._before = slopes
        for name, weight in self.weights.items():
            weight.grad = slopes[name].clone()
        self._optimizer.step()


def _repeated(loader: Iterable[Any], steps: int | None) -> Iterator[Any]:
    """The batches of a loader once, or as many as wanted."""
    count = 0
    while True:
        before = count
        for batch in loader:
            yield batch
            count += 1
            if count == steps:
                return
        if steps is None or count == before:
            return

"""How smooth the loss is along the gradient, at one point of one network; and how far several networks drift apart, which is another thing.

Formula, of `smoothness`: with g the gradient of the loss L of one batch at the weights, for steps η: *loss variation* L(θ - η g); *gradient
predictiveness* ||∇L(θ) - ∇L(θ - η g)||; *effective β-smoothness* max over η of that divided by ||η g||. For L = ½ θᵀHθ it is ||Hg|| / ||g||
at every η; for a linear L it is 0.
Differs from what public reproductions draw: those train several networks with different learning rates, and shade what lies between the
smallest and largest loss over the runs, and between changes of the gradient from one step to the next, which is also one batch to the
next: `across_runs`. It says how robust training is to the learning rate, and is no β-smoothness.
Reference: Santurkar, Tsipras, Ilyas and Madry, "How Does Batch Normalization Help Optimization?", NeurIPS 2018, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis._still import Loss, difference, gradients, holding, moved, norm
from normsmith.errors import OptionError
from normsmith.surgery._models import Forward


@dataclass(frozen=True, eq=False)
class Smoothness:
    """The loss and its gradient along the gradient; tensors are float64 on the CPU, with a number for each step."""

    steps: Tensor
    loss: float  # where the steps start
    gradient: float  # the norm of the gradient there
    losses: Tensor  # L(θ - η g)
    changes: Tensor  # ||∇L(θ) - ∇L(θ - η g)||

    @property
    def loss_band(self) -> tuple[float, float]:
        """The smallest and largest loss along the way."""
        return self.losses.min().item(), self.losses.max().item()

    @property
    def change_band(self) -> tuple[float, float]:
        """The smallest and largest change of the gradient: its predictiveness."""
        return self.changes.min().item(), self.changes.max().item()

    @property
    def betas(self) -> Tensor:
        """The change of the gradient per length of the step; NaN where the gradient is zero."""
        return self.changes / (self.steps.abs() * self.gradient)

    @property
    def beta(self) -> float:
        """The effective β-smoothness: the largest of `betas`."""
        return self.betas.max().item()


def smoothness(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    lr: float | None = None,
    steps: Sequence[float] | None = None,
    forward: Forward | None = None,
) -> Smoothness:
    """The smoothness of the loss of one batch along its gradient, over steps from lr/2 to 4 lr, nine on a logarithmic scale, or `steps`.

    `loss(output, target)` is a number; the target is what follows the input in `batch`, or the batch itself if nothing does.
    `forward(model, batch)` gives the output if it is not model(input). Every point has the same batch, random numbers, and running
    statistics at the start. The model stays in the mode it is in, and is afterwards as it was.
    """
    if (lr is None) == (steps is None):
        raise OptionError("smoothness expects either lr= or steps=: got both or neither; lr is the learning rate of training")
    grid = list(steps) if steps is not None else [(lr or 0) * 2 ** (-1 + 3 * i / 8) for i in range(9)]
    if not grid or not all(math.isfinite(step) and step != 0 for step in grid):
        raise OptionError(f"smoothness expects steps that are finite and not zero: got {grid}")
    with holding(model, "smoothness", forward) as still:
        weights = still.weights()
        start = still.loss(loss, batch, weights)
        slope = gradients(start, weights)
        losses, changes = [], []
        for step in grid:
            there = moved(weights, slope, -step)
            value = still.loss(loss, batch, there)
            losses.append(value.detach().double().cpu())
            changes.append(difference(slope, gradients(value, there)))
        sizes = torch.tensor(grid, dtype=torch.float64)
        return Smoothness(sizes, start.item(), norm(slope).item(), torch.stack(losses), torch.stack(changes))

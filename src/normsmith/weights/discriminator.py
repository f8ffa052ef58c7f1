"""`GradNormDiscriminator`: the discriminator of a GAN divided by the size of its own gradient.

Formula: f̂(x) = f(x) / (||∇f(x)|| + |f(x)|), of each sample by itself: between -1 and 1; where f is linear piece by piece, its gradient has
the norm (||∇f|| / (||∇f|| + |f|))², which is at most 1. ∇f is part of the graph: a backward through it is a second derivative of f.
Reference: Wu, Shuai, Tam and Chiu, "Gradient Normalization for Generative Adversarial Networks", ICCV 2021.
"""

from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import InputError


class GradNormDiscriminator(nn.Module):
    """A network with one output for each sample, normalized by its gradient with respect to the first input.

    Samples must not depend on each other: with batch norm inside, the gradient would be that of all of them together. A network without
    gradient and output gives 0.
    """

    def __init__(self, network: nn.Module, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.network = network
        self.eps = eps

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """The normalized output, in the shape of the network's."""
        learning = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not learning:
                x, others = x.detach().clone(), tuple(o.clone() if isinstance(o, Tensor) else o for o in others)
            x = x if x.requires_grad else x.detach().requires_grad_()
            f = self.network(x, *others)
            if not isinstance(f, Tensor) or f.shape[:1] != x.shape[:1] or f.numel() != len(x):
                got = f"shape {tuple(f.shape)}" if isinstance(f, Tensor) else type(f).__name__
                raise InputError(
                    f"GradNormDiscriminator expects a network with one output for each of {len(x)} samples: got {got}"
                )
            (slope,) = torch.autograd.grad(f.sum(), x, create_graph=learning)
            size: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
            y = f / (size.view(f.shape) + f.abs()).clamp_min(self.eps)
        return y if learning else y.detach()

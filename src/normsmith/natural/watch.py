"""What a layer sees of its inputs, and of the gradients at its output, while it is told to look."""

from typing import Any, Literal

import torch
from torch import Tensor

from normsmith.natural.spread import Spread

When = Literal["never", "training", "always"]


class Seen:
    """The spread of what went in, and the second moments of what came back; a copy of the layer has one of its own."""

    def __init__(self, when: When = "never", probe: Tensor | None = None) -> None:
        self.when = when
        self.spread: Spread | None = None
        self.probe = probe  # its gradient is the sum of the products of the gradients at the output
        self.samples = 0  # that those gradients are of

    def add(self, rows: Tensor, groups: int) -> None:
        """Take down some rows."""
        new = Spread.of(rows, groups)
        self.spread = new if self.spread is None else self.spread.and_of(new)

    def state(self) -> dict[str, Any]:
        """What was seen, as tensors and plain data; nothing if that is nothing."""
        heard = None if self.probe is None or self.probe.grad is None else self.probe.grad.clone()
        if self.spread is None and heard is None:
            return {}
        return {"spread": None if self.spread is None else tuple(self.spread), "heard": heard, "samples": self.samples}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with what was seen before."""
        if state["spread"] is not None:
            self.spread = Spread(*(tensor.to(device) for tensor in state["spread"]))
        if state["heard"] is not None and self.probe is not None:
            self.probe.grad = state["heard"].to(device, copy=True)
        self.samples = state["samples"]


class Listen(torch.autograd.Function):
    """Passes an output on. The gradient of `probe` is made to be Σ dh dhᵀ over the rows of dh, times the square of the samples.

    So it needs no hook, which torch.compile would not take, and adds up over batches as gradients do. The factor makes gradients of the
    mean over samples those of each sample.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, probe: Tensor, kernel: int, samples: int) -> Tensor:
        """The output."""
        ctx.kernel, ctx.samples, ctx.groups = kernel, samples, probe.shape[0]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Its gradient, and what the probe is to hear."""
        (dy,) = grads
        channels = -1 - ctx.kernel
        rows = dy.movedim(channels, -1).reshape(-1, dy.shape[channels]).to(torch.promote_types(dy.dtype, torch.float32))
        rows = ctx.samples * rows.view(len(rows), ctx.groups, -1).transpose(0, 1)
        return dy, (rows.mT @ rows).double(), None, None

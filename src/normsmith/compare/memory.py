"""What a step of training takes beside the model, its optimizer and the batch."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.analysis._memory import peak_bytes


def step_memory(model: nn.Module, x: Tensor, y: Tensor, loss_of: Callable[[Any, Tensor], Tensor]) -> int:
    """In bytes: activations and gradients of a forward and a backward of one part of a batch, on a copy of the model."""
    twin = copy.deepcopy(model).train()
    random = torch.get_rng_state()

    def step() -> None:
        loss_of(twin(x), y).backward()  # type: ignore[no-untyped-call]

    try:
        if x.device.type == "cpu":
            return peak_bytes(step)
        with torch.cuda.device(x.device):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
    finally:
        torch.set_rng_state(random)

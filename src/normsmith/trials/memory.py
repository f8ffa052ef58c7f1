"""What a forward keeps for its backward."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.trials.algorithms import Forward, plain


def kept_for_backward(model: nn.Module, x: Tensor, forward: Forward = plain) -> int:
    """Bytes of all tensors saved in a forward in training, each memory once, without the parameters; on a copy of the model."""
    twin = copy.deepcopy(model).train()
    own = {p.untyped_storage().data_ptr() for p in twin.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    random = torch.get_rng_state()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, _same):
            output: Any = forward(twin, x)
    finally:
        torch.set_rng_state(random)
    del output  # it held what was found, so that no address was taken twice
    return sum(size for place, size in found.items() if place not in own)


def _same(tensor: Tensor) -> Tensor:
    return tensor

"""`Average`: an exponential average of a model's state, to be evaluated instead of it."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """Floating parameters and buffers are averaged, the rest is that of the newest model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: t.detach().clone() for name, t in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model."""
        new = _tensors(model)
        floating = [name for name, t in new.items() if t.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in floating], [new[n] for n in floating], 1 - self.decay)
        for name in new.keys() - set(floating):
            self.state[name].copy_(new[name])

    @torch.no_grad()
    def applied(self, model: nn.Module) -> nn.Module:
        """A copy of the model with the average in it."""
        twin = copy.deepcopy(model)
        for name, t in _tensors(twin).items():
            t.copy_(self.state[name])
        return twin


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}

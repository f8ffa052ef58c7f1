"""What folding touches in a model, as it was, and the way there and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from normsmith.errors import ModelError
from normsmith.surgery._constant import Weighted
from normsmith.surgery._plans import Plan


class Carving:
    """Plans that are carried out in a model, layers that others stand for, and what it takes to bring them back."""

    def __init__(self, model: nn.Module, plans: Sequence[Plan], packing: Mapping[nn.Module, nn.Module]) -> None:
        norms = {plan.norm for plan in plans}
        for plan in plans:
            if plan.rest not in plan.norm._modules.values():
                plan.rest.training = plan.norm.training
        self.packing = packing  # convolutions that may be packed, and those that would stand for them
        self.done: tuple[Plan, ...] = ()
        self.packed = False
        self.taken_back = False
        self.slots = [
            (parent, key, child)
            for parent in model.modules()
            for key, child in parent._modules.items()
            if child is not None and (child in norms or child in packing)
        ]
        self.weights = {
            layer: (layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone())
            for plan in plans
            for layer in plan.layers
        }

    def apply(self, plans: Sequence[Plan], *, packed: bool = False) -> None:
        """Bring the model to where exactly these plans are carried out, with convolutions packed or not."""
        for layer, (weight, bias) in self.weights.items():
            _write(layer, weight, bias)
        for plan in plans:
            for layer in plan.layers:
                _write(layer, *plan.weights(layer))
        self.done, self.packed = tuple(plans), packed
        instead = self._instead()
        for parent, key, child in self.slots:
            parent._modules[key] = instead.get(child, child)
        torch.clear_autocast_cache()  # it may hold the weights in another type

    def _instead(self) -> dict[nn.Module, nn.Module]:
        """What stands now where these layers stood."""
        return {plan.norm: plan.rest for plan in self.done} | (dict(self.packing) if self.packed else {})

    def settle(self) -> None:
        """Forget what no plan that was carried out has touched."""
        touched = {layer for plan in self.done for layer in plan.layers}
        self.weights = {layer: was for layer, was in self.weights.items() if layer in touched}

    def take_back(self) -> None:
        """Bring the model to where it was, or raise if it is no longer what `apply` made of it."""
        instead = self._instead()
        same = not self.taken_back and all(
            parent._modules.get(key) is instead.get(child, child) for parent, key, child in self.slots
        )
        for layer, (was, _) in self.weights.items():
            same &= (layer.weight.shape, layer.weight.dtype, layer.weight.device) == (was.shape, was.dtype, was.device)
        if not same:
            raise ModelError(
                "undo expects the model as fold left it: got one that was taken back already, edited, or moved since; "
                "move it back to where it was, or load the weights from before"
            )
        if self.packed:
            for old, new in self.packing.items():
                old.training = new.training
        self.apply(())
        self.taken_back = True


def _write(layer: Weighted, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer these values; the parameters it has stay the objects they are."""
    with torch.inference_mode(False), torch.no_grad():
        layer.weight.copy_(weight)
        if bias is None:
            layer.bias = None
            return
        if layer.bias is None:
            like = layer.weight
            empty = torch.empty(bias.shape, dtype=like.dtype, device=like.device)
            layer.bias = nn.Parameter(empty, requires_grad=like.requires_grad)
        layer.bias.copy_(bias)

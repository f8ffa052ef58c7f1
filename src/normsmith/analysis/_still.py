"""A model held still: it runs with copies of its weights and buffers, so that questions can be asked that would otherwise change it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from normsmith.analysis._photograph import Photograph, Randomness
from normsmith.errors import ModelError, OptionError
from normsmith.surgery._models import Forward, refuse_wrapped, run_batch, to_device

Result = TypeVar("Result")
Loss = Callable[[Any, Any], Tensor]
Weights = dict[str, Tensor]


class Still:
    """A model whose own tensors are never written; made by `holding`."""

    def __init__(self, model: nn.Module, verb: str, forward: Forward | None) -> None:
        refuse_wrapped(model, verb)
        named: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
        for name, tensor in named:
            if is_lazy(tensor):
                raise ModelError(
                    f"{verb} expects a model that knows its sizes: got {name!r}, which is lazy; run the model once"
                )
        self.model, self.verb, self.forward = model, verb, forward
        self.trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        self.start_from_here()
        self._shell = _Shell(model)

    def start_from_here(self) -> None:
        """Let every loss from now on be drawn from the random numbers that come next."""
        self._randomness = Randomness(self.model)

    def weights(self) -> Weights:
        """Copies of the model's trainable parameters."""
        if not self.trainable:
            raise ModelError(f"{self.verb} expects parameters that require a gradient: got none; call model.requires_grad_()")
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach().clone().requires_grad_() for name in self.trainable}

    def buffers(self) -> Weights:
        """Copies of the model's buffers."""
        return {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}

    def call(self, function: Callable[[], Result], weights: Weights, buffers: Weights | None = None) -> Result:
        """What `function` returns while the model has these weights; buffers move in those given, or in copies nobody sees."""
        rest = {n: p.detach().clone() for n, p in self.model.named_parameters() if n not in weights}
        inside = {**rest, **weights, **(self.buffers() if buffers is None else buffers)}
        found: Result = functional_call(self._shell, {f"inside.{name}": t for name, t in inside.items()}, (function,))
        return found

    def output(self, batch: Any) -> Any:
        """The model's output for a batch, with the weights it has inside `call`."""
        return run_batch(self.model, batch, self.forward)

    def loss(self, loss: Loss, batch: Any, weights: Weights, buffers: Weights | None = None) -> Tensor:
        """The loss of a batch at other weights, drawn from the same random numbers at every call."""
        self._randomness.put_back()
        with torch.enable_grad():
            value: Any = self.call(lambda: loss(self.output(batch), self.target(batch)), weights, buffers)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = (
                f"a tensor of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise OptionError(f"{self.verb} expects loss(output, target) to return one number: got {got}; take its mean")
        if not value.requires_grad:
            raise OptionError(
                f"{self.verb} expects a loss that depends on the weights: got one without a gradient; compute it from the output"
            )
        scalar: Tensor = value.reshape(())
        return scalar

    def target(self, batch: Any) -> Any:
        """What the loss compares the output with: what follows the input in a batch, or the batch itself if nothing does."""
        batch = to_device(batch, next(self.model.parameters()).device)
        if isinstance(batch, list) and len(batch) > 1:
            return batch[1] if len(batch) == 2 else batch[1:]
        return batch[0] if isinstance(batch, list) and batch else batch


def gradients(loss: Tensor, weights: Weights) -> Weights:
    """The gradient of each weight, zero where the loss does not depend on it."""
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def moved(weights: Weights, direction: Mapping[str, Tensor], step: float) -> Weights:
    """New weights, a step along a direction."""
    return {name: torch.add(w.detach(), direction[name], alpha=step).requires_grad_() for name, w in weights.items()}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """The Euclidean norm of what two sets of tensors differ by, in float64."""
    return norm({name: one[name].double() - other[name].double() for name in one})


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """The Euclidean norm of all tensors as one vector, in float64."""
    lengths = torch.stack([torch.linalg.vector_norm(t.double()).cpu() for t in tensors.values()])
    whole: Tensor = torch.linalg.vector_norm(lengths)
    return whole


@contextlib.contextmanager
def holding(model: nn.Module, verb: str, forward: Forward | None = None, *, evaluating: bool = False) -> Iterator[Still]:
    """In this block a model can be run at any weights; after it nothing has changed: weights, buffers, modes, hooks, random states.

    Everything runs with gradients, also for a caller that has switched them off. The model stays in the modes it is in, or is in
    evaluation if that is asked for.
    """
    still = Still(model, verb, forward)
    photograph, randomness = Photograph(model), Randomness(model)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            if evaluating:
                model.eval()
            yield still
    finally:
        photograph.restore()
        randomness.put_back()


class _Shell(nn.Module):
    """Gives `functional_call` a forward of our own, so that a loss that looks at the model sees the same weights as its forward."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, function: Callable[[], Result]) -> Result:
        return function()

"""`Subject`: what is examined, with all that is needed to run it again on a batch and to say how wrong it is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.analysis._likelihood import logits
from normsmith.errors import InputError, OptionError
from normsmith.surgery._models import Forward, run_batch, to_device

BatchLoss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Held:
    """A batch that the functions of `analysis` pass on whole, to `Subject.run` and to the loss."""

    batch: Any


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, where its batches come from, and the loss; None is the model's own, or cross entropy."""

    model: nn.Module
    loader: Iterable[Any]
    batches: int | None = None
    forward: Forward | None = None
    loss: BatchLoss | None = None
    optimizer: Any = None

    def output(self, model: nn.Module, batch: Any) -> Any:
        """What a model of this kind returns for a batch."""
        return run_batch(model, batch, self.forward)

    def value(self, model: nn.Module, output: Any, batch: Any) -> Tensor:
        """The loss of an output, one number."""
        where = next((t.device for t in (*model.parameters(), *model.buffers())), None)
        batch = to_device(batch, where)
        found: Any = cross_entropy(output, batch) if self.loss is None else self.loss(output, batch)
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise OptionError(f"examine expects loss(output, batch) to return one number: got {got}; take its mean")
        return found.reshape(())

    def run(self, model: nn.Module, held: Held) -> Any:
        """`forward` of the functions of `analysis`."""
        return self.output(model, held.batch)

    def compare(self, output: Any, held: Held) -> Tensor:
        """`loss` of the functions of `analysis`."""
        return self.value(self.model, output, held.batch)


def labels(batch: Any, z: Tensor) -> Tensor | None:
    """What follows the input in a batch, or is called labels in it, if it can be those of logits (N, K, *positions)."""
    pair = isinstance(batch, tuple | list) and len(batch) > 1
    found: Any = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if pair else None
    whole = isinstance(found, Tensor) and not found.is_floating_point() and not found.is_complex()
    if not isinstance(found, Tensor) or not whole or found.shape != z.shape[:1] + z.shape[2:]:
        return None
    return found.long() if not found.numel() or int(found.max()) < z.shape[1] else None


def cross_entropy(output: Any, batch: Any) -> Tensor:
    """The model's own loss if its output has one, else the cross entropy of logits and the labels of the batch."""
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own
    z = logits(output, "examine")
    found = labels(batch, z)
    if found is None:
        raise InputError(
            "labels missing for a loss-based check: expected a loss in the output, or whole numbers of shape "
            f"{tuple(z.shape[:1] + z.shape[2:])} below {z.shape[1]} after the input of a batch; pass loss=, a function of output and batch"
        )
    return F.cross_entropy(z, found)

"""The exact average over batches, in the place of a moving one: what the batches of a block are together, for all layers in one pass."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods._running import BUFFERS, RunningNormalizer
from normsmith.moments import Moments


@contextlib.contextmanager
def collecting(model: nn.Module, *, variance: Literal["total", "within"] = "total") -> Iterator[None]:
    """Every forward of `model` in this block gives its batch to the running statistics; at the end they are those of all batches.

    ```
    with torch.no_grad(), ns.collecting(model):
        for x in batches:
            model(x)
    ```

    Every layer with running statistics works as in training: by the batch's own, so that one pass serves layers in any order. Batches are
    merged exactly, weighted by their counts, in float64: `"total"` is the variance of all their elements; `"within"` is the average of
    the batches' own variances, without what their means differ by. Other layers stay in the mode they are in, say dropout in evaluation.
    Frozen layers, and layers that see no batch, keep what they have; after an error all do.
    """
    one_of("collecting", "variance", variance, ("total", "within"))
    layers = [
        m for m in model.modules() if isinstance(m, RunningNormalizer) and m.running_mean is not None and m.running_mean.numel()
    ]
    if any(layer.collected is not None for layer in layers):
        raise OptionError("collecting expects a model that is not collecting already: got one inside another block; use one")
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            assert layer.running_mean is not None
            layer.collected = layer.running_mean.new_zeros((4, *layer.statistics_shape()), dtype=torch.float64)
            layer.collects_within = variance == "within"
            layer.training = True
        yield
        for layer in layers:
            assert layer.collected is not None
            settle(layer, layer.collected, layer.collects_within)
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode
            layer.collected = None


def settle(layer: nn.Module, collected: Tensor, within: bool) -> None:
    """Bring mean, variance, count and number of some batches to where evaluation reads them; `within` as in `collecting`."""
    mean, var, count, batches = collected.unbind(0)
    var = var if within else Moments(mean, var, count).unbiased()
    number = batches.amax(-1).long()  # of several sets each has its own
    new = {"running_mean": mean, "running_var": var, "num_batches_tracked": number}
    with torch.no_grad():
        for key in BUFFERS:
            running, value = layer._buffers[key], new[key]
            assert running is not None
            seen = number > 0 if value is number else count > 0
            running.copy_(torch.where(seen, value.to(running.dtype), running))

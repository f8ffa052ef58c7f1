"""The exact average over batches, in the place of a moving one: what the batches of a block are together, for all layers in one pass."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods._batches import apart, pairs
from normsmith.methods._running import RunningNormalizer
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
            layer.collected = layer.running_mean.new_zeros(layer.state_shape(), dtype=torch.float64)
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
    mean, var, count, batches = apart(collected)
    union, number = Moments(mean, var, count), batches.amax(-1).long()  # of several sets each has its own
    with torch.no_grad():
        if isinstance(layer, RunningNormalizer):
            kept = layer.kept(mean, var if within else layer.final(union))
        else:  # one of torch's
            kept = pairs(layer, mean, var if within else union.unbiased())
        for running, value in kept:
            running.copy_(torch.where(count > 0, value.to(running.dtype), running))
        if isinstance(layer, RunningNormalizer):
            layer.settled(count)
        tracked = layer._buffers["num_batches_tracked"]
        assert tracked is not None
        tracked.copy_(torch.where(number > 0, number, tracked))

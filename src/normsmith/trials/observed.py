"""What a recipe can ask to be recorded of every normalizer at the end of every epoch."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from normsmith.doctor.moments import FourMoments
from normsmith.methods._base import Normalizer
from normsmith.trials.algorithms import Test

Value = tuple[str, str, float]  # layer, name, value


def observed(model: nn.Module, wanted: Collection[str], test: Test) -> Iterator[Value]:
    """The values, layer by layer."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Normalizer)} if wanted else {}
    for name, layer in layers.items():
        ratios: Any = getattr(layer, "ratios", None)
        if "ratios" in wanted and ratios is not None:
            for statistic, shares in ratios().items():
                yield from ((name, f"{statistic} share of {part}", share) for part, share in shares.items())
        chain: Any = getattr(layer, "filter", None)
        if "gains" in wanted and chain is not None:
            yield name, "gain", float(chain.gain.detach())
    if "moments" in wanted:
        yield from _moments(model, layers, test)


@torch.no_grad()
def _moments(model: nn.Module, layers: dict[str, Normalizer], test: Test) -> Iterator[Value]:
    """Of what the normalizers read of one batch in evaluation, the average over channels."""
    found: dict[str, FourMoments] = {}
    handles = []
    for name, layer in layers.items():

        def look(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            x = inputs[0]
            found.setdefault(name, FourMoments(x.shape[1], x.device)).add(x)

        handles.append(layer.register_forward_pre_hook(look))
    try:
        model.eval()
        x, _ = next(iter(test.batches))
        test.forward(model, x)
    finally:
        for handle in handles:
            handle.remove()
    for name, moments in found.items():
        for what in ("mean", "var", "skewness", "kurtosis"):
            value = getattr(moments, what)
            yield name, {"var": "variance", "kurtosis": "excess kurtosis"}.get(what, what), float(value.mean())

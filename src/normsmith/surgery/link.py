"""`link`: put the Kalman layers of a model in the order in which its forward passes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods.kalman import KalmanNorm
from normsmith.methods.kalman_group import KalmanGroupNorm
from normsmith.surgery._models import run

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Kalman = KalmanNorm | KalmanGroupNorm


def link(model: nn.Module, example: Any) -> dict[str, list[str]]:
    """Link every Kalman layer of `model` to the ones before it, and return for each name theirs; do it before making the optimizer.

    `example` is a tensor, or a tuple or mapping of arguments. The model is run once, in evaluation, and the graph that autograd recorded is
    followed back from the input of each layer to the outputs of others. Where several are reached, branches meet: their states are
    added, or set side by side if a concatenation lies on the way. Parameters, buffers and modes are left as they were.
    """
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, Kalman)}
    if not names:
        raise OptionError(
            "link expects a model with Kalman layers: got none; convert some, or build them with ns.make('kalman', C)"
        )
    inputs, outputs, weighted = _run(model, example, list(names))
    found = {}
    for layer, name in names.items():
        if layer not in inputs:
            raise OptionError(f"link expects an example that reaches every Kalman layer: got one that leaves out {name!r}")
        before, between, join = _before(inputs[layer], outputs, weighted)
        kin = [other for other in before if type(other) is type(layer)]
        found[name] = [names[other] for other in kin]
        if not kin:
            continue
        if isinstance(layer, KalmanNorm):
            layer.link([k for k in kin if isinstance(k, KalmanNorm)], join=join, between=between)  # type: ignore[arg-type]
        else:
            layer.link([k for k in kin if isinstance(k, KalmanGroupNorm)], join=join)  # type: ignore[arg-type]
    return found


def _run(
    model: nn.Module, example: Any, layers: Sequence[Kalman]
) -> tuple[dict[Kalman, Any], dict[Any, Kalman], dict[Any, nn.Module]]:
    """The graph nodes of the inputs of the layers, of their outputs, and of the outputs of layers with weights, by one forward."""
    inputs: dict[Kalman, Any] = {}
    outputs: dict[Any, Kalman] = {}
    weighted: dict[Any, nn.Module] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, Kalman):
            if module in inputs:
                raise OptionError(
                    "link expects every Kalman layer to run once in a forward: got one that is shared by several places"
                )
            inputs[module] = arguments[0].grad_fn
            outputs[output.grad_fn] = module
        elif isinstance(output, Tensor):
            weighted[output.grad_fn] = module

    modes = {module: module.training for module in model.modules()}
    wanted = {p: p.requires_grad for p in model.parameters()}
    hooks = [
        m.register_forward_hook(note) for m in model.modules() if isinstance(m, (*_WEIGHTED, *(KalmanNorm, KalmanGroupNorm)))
    ]
    kept = [(layer, layer._before, layer.slot.wanted) for layer in layers]
    try:
        for layer in layers:
            layer._before, layer.slot.wanted = (), False
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        model.eval()
        with torch.enable_grad():
            run(model, _live(example))
    finally:
        for layer, before, was_wanted in kept:
            layer._before, layer.slot.wanted = before, was_wanted
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)
    return inputs, outputs, weighted


def _live(example: Any) -> Any:
    """The example with tensors that autograd follows."""
    if isinstance(example, Tensor):
        return example.detach().clone().requires_grad_() if example.is_floating_point() else example
    if isinstance(example, Mapping):
        return {key: _live(value) for key, value in example.items()}
    return tuple(_live(value) for value in example) if isinstance(example, tuple | list) else example


def _before(
    start: Any, outputs: Mapping[Any, Kalman], weighted: Mapping[Any, nn.Module]
) -> tuple[list[Kalman], nn.Module | None, str]:
    """The layers whose outputs are reached first going back from a node; the one layer with weights on the way; and how branches meet."""
    found: list[Kalman] = []
    passed: list[nn.Module] = []
    join, seen, waiting = "add", set(), [start]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in outputs:
            if outputs[node] not in found:
                found.append(outputs[node])
            continue
        if node in weighted:
            passed.append(weighted[node])
        if type(node).__name__.startswith("CatBackward"):
            join = "cat"
        waiting += [following for following, _ in reversed(node.next_functions)]
    return found, passed[0] if len(passed) == 1 else None, join

"""`conditioned`: a network whose normalizers want a condition with every sample, given it from outside."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from normsmith.errors import ModelError
from normsmith.methods._base import Normalizer
from normsmith.surgery._models import expect_module


def conditions_of(model: nn.Module) -> dict[str, Normalizer]:
    """The normalizers of a model that want a condition with every sample, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Normalizer) and m.condition_name is not None}


@contextlib.contextmanager
def conditioned(model: nn.Module, condition: Tensor) -> Iterator[None]:
    """Within it every conditional and context norm of `model` that is called with x alone gets `condition`, one for each sample.

    ```
    model = ns.models.make("resnet20", norm="context")
    with ns.conditioned(model, domains):  # integers, (N,)
        loss = criterion(model(images), labels)
        loss.backward()
    ```

    A backward that runs parts of the model again, as activation checkpointing does, belongs inside. A call that names its condition
    keeps it. The samples of the batch have to stay in their order on the way through the model.
    """
    expect_module(model, "conditioned")
    layers = conditions_of(model)
    if not layers:
        raise ModelError(
            "conditioned expects a model with normalizers that take a condition: got none; build it with norm='context' or "
            "norm='conditional'"
        )
    handles = [layer.register_forward_pre_hook(_Giving(condition), with_kwargs=True) for layer in layers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def given_examples(model: nn.Module) -> Iterator[None]:
    """Within it normalizers that want a condition get one that they could have, if they are given none: to see whether they run."""
    handles = [layer.register_forward_pre_hook(_Giving(None), with_kwargs=True) for layer in conditions_of(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Giving:
    """A hook that adds the condition, or for None an example of one, to the arguments of a layer."""

    def __init__(self, condition: Tensor | None) -> None:
        self.condition = condition

    def __call__(
        self, layer: Normalizer, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        name = layer.condition_name
        assert name is not None
        if len(arguments) > 1 or name in named:
            return None
        condition = layer.example_inputs(arguments[0])[name] if self.condition is None else self.condition
        return arguments, {**named, name: condition}

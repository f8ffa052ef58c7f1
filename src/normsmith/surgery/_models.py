"""What surgery does with a model it did not write: refuse wrappers, feed it, look at what comes out, leave no trace of a run."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.errors import InputError, ModelError

Forward = Callable[[nn.Module, Any], Any]


def refuse_wrapped(model: nn.Module, verb: str) -> None:
    """Raise for a model inside a wrapper that keeps its own record of modules or parameters: an edit would pass it by."""
    expect_module(model, verb)
    for name, module in model.named_modules():
        kind, inside = wrapper(module)
        if kind:
            what = "the model" if name == "" else f"module {name!r}"
            raise ModelError(f"{verb} expects a bare model: got {what} {kind}; {verb} {inside}, and wrap it again afterwards")


def expect_module(model: object, verb: str) -> None:
    """Raise for what is no model at all."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"{verb} expects a torch.nn.Module: got {type(model).__name__}; pass the model itself")


def wrapper(module: nn.Module) -> tuple[str, str]:
    """How a module is wrapped, and where what is inside it can be found; empty if it is not."""
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit", "the Python module it was made of"
    if type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
        return "compiled by torch.compile", "its _orig_mod"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled in place", "it before compile()"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"inside {type(module).__name__}", "its .module"
    bases = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.distributed")}
    if bases & {"FullyShardedDataParallel", "FSDPModule"}:
        return "sharded by FSDP", "it before sharding"
    return "", ""


def run(model: nn.Module, example: Any) -> Any:
    """The model's output for an example: a tensor, or a tuple or mapping of arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def run_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """The model's output for a batch of a loader: a tensor, a mapping of arguments, or a sequence whose first item is the input.

    The batch goes to the device of the model. `forward(model, batch)` is called instead if given.
    """
    where = next((t.device for t in itertools.chain(model.parameters(), model.buffers())), None)
    batch = to_device(batch, where)
    if forward is not None:
        return forward(model, batch)
    if isinstance(batch, tuple | list):
        if not batch:
            raise InputError(
                "a loader is expected to yield tensors, mappings, or sequences with the input first: got an empty one"
            )
        batch = batch[0]
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


def to_device(value: Any, device: torch.device | None) -> Any:
    """All tensors in nested containers on a device."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_device(item, device) for item in value]
    return value


def tensors(output: Any) -> list[Tensor]:
    """The floating tensors in what a model returns, however it is packed."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for item in output.values() for t in tensors(item)]
    if isinstance(output, tuple | list):
        return [t for item in output for t in tensors(item)]
    if is_dataclass(output) and not isinstance(output, type):
        return [t for field in fields(output) for t in tensors(getattr(output, field.name))]
    return []


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In this block the model is in evaluation, without gradients; modes and random state are put back after it."""
    modes = {module: module.training for module in model.modules()}
    devices = {t.get_device() for t in model.parameters() if t.is_cuda}
    try:
        with torch.random.fork_rng(sorted(devices)), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with all names it goes by: more than one where parents share it."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found

"""A model as it is at a moment, with everything a run could move besides tensors, and the way back."""

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (
    dict,
    OrderedDict,
    defaultdict,
    list,
    set,
)  # not what only looks like them: a model's output may refuse to be filled
_NO_HOLDERS = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType, torch.Generator)


class Photograph:
    """The attributes of every module, and of the plain objects they keep, with the lists, dictionaries and sets among these.

    Modes, hooks, counters, and what a layer remembers of its last forward are all of that kind. Values of parameters and buffers are not
    looked at: who runs the model must run it with copies.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attributes = [(holder, dict(vars(holder))) for holder in _holders(model)]
        self._containers: list[tuple[Any, Any]] = [
            (value, value.copy()) for _, saved in self._attributes for value in saved.values() if type(value) in _CONTAINERS
        ]

    def restore(self) -> None:
        """Put back what has changed."""
        for holder, saved in self._attributes:
            now = vars(holder)
            for key in [key for key in now if key not in saved]:
                del now[key]
            for key, value in saved.items():
                if key not in now or now[key] is not value:
                    now[key] = value
        for container, content in self._containers:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)


def _holders(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module
        for value in vars(module).values():
            if hasattr(value, "__dict__") and not isinstance(value, _NO_HOLDERS) and not callable(value):
                yield value


class Randomness:
    """The state of all random generators that a model may draw from: torch's, of the CPU and of its GPUs, numpy's and Python's."""

    def __init__(self, model: nn.Module) -> None:
        devices = {t.get_device() for t in (*model.parameters(), *model.buffers()) if t.is_cuda}
        cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
        self._steps: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (torch.set_rng_state, (cpu,)),
            (random.setstate, (python,)),
            (np.random.set_state, (numpy,)),
            *((torch.cuda.set_rng_state, (torch.cuda.get_rng_state(device), device)) for device in sorted(devices)),
        ]

    def put_back(self) -> None:
        """Draw on from here again."""
        for step, arguments in self._steps:
            step(*arguments)

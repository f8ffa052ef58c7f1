"""An optimizer that goes on after its model was edited: parameters that left are out, new ones in, the others' state untouched."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from normsmith.errors import OptionError


class Patch:
    """What was changed in one optimizer, to be undone to the bit."""

    def __init__(self, optimizer: Optimizer, touched: Iterable[nn.Parameter]) -> None:
        self.optimizer = optimizer
        self._groups = [
            {key: list(group[key]) for key in ("params", "param_names") if key in group} for group in optimizer.param_groups
        ]
        self._state = [(p, copy.deepcopy(optimizer.state[p]) if p in optimizer.state else None) for p in touched]

    def apply(self, gone: set[nn.Parameter], added: Sequence[tuple[str, nn.Parameter, Sequence[nn.Parameter]]]) -> None:
        """Take out what is gone; put each new parameter, named, into the group of its first kin that is found."""
        homes = {p: group for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter, kin in added:
            home = next((homes[k] for k in kin if k in homes), None)
            if home is None:
                continue
            home["params"].append(parameter)
            if "param_names" in home:
                home["param_names"].append(name)
        for group in self.optimizer.param_groups:
            stays = [p not in gone for p in group["params"]]
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [value for value, keep in zip(group[key], stays, strict=True) if keep]
        for parameter in gone:
            self.optimizer.state.pop(parameter, None)

    def undo(self) -> None:
        """Groups and the state of what was touched as they were."""
        before = {p for kept in self._groups for p in kept["params"]}
        for group, kept in zip(self.optimizer.param_groups, self._groups, strict=True):
            for parameter in group["params"]:
                if parameter not in before:
                    self.optimizer.state.pop(parameter, None)
            for key, values in kept.items():
                group[key] = values
        for parameter, state in self._state:
            if state is None:
                self.optimizer.state.pop(parameter, None)
            else:
                self.optimizer.state[parameter] = state


def check(optimizer: Any, model: nn.Module, verb: str = "convert") -> list[Optimizer]:
    """The optimizers as a list; raises for one that is none, or is another model's."""
    found = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    parameters = set(model.parameters())
    for one in found:
        if not isinstance(one, Optimizer):
            raise OptionError(f"{verb} expects optimizer as a torch.optim.Optimizer, or several: got {type(one).__name__}")
        if not any(p in parameters for group in one.param_groups for p in group["params"]):
            raise OptionError(
                f"{verb} expects the optimizer of this model: got one that holds none of its parameters; make it anew"
            )
    return found

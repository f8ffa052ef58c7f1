"""What `reparametrize` was asked for, as the rooms that place something get it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from normsmith.errors import OptionError
from normsmith.methods._specs import among
from normsmith.natural.states import Moments
from normsmith.surgery._choice import Where

Loss = Callable[[Any, Any], Tensor]
Options = TypeVar("Options")


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `reparametrize`, checked as far as they mean the same for all."""

    model: nn.Module
    name: str
    options: Mapping[str, Any]  # those written behind the name
    where: Where | None
    optimizers: list[Optimizer]
    data: Any
    batches: int | None
    every: int | None
    window: int
    loss: Loss | None
    moments: Moments
    process_group: dist.ProcessGroup | None

    def read(self, kind: type[Options], given: tuple[str, ...] | None = None) -> Options:
        """The options as a dataclass of that kind, of whose fields only those `given` may be set."""
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        among(dict(self.options), [name for name in known if given is None or name in given], self.name)
        return kind(**self.options)

    def refuse(self, **useless: Any) -> None:
        """Raise for arguments that are set although they mean nothing here."""
        for key, value in useless.items():
            if value is not None:
                raise OptionError(f"reparametrize to {self.name!r} expects no {key}: got {value!r}; leave it out")

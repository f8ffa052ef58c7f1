"""What `reparametrize` was asked for, as the rooms that place something get it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from normsmith.errors import OptionError
from normsmith.natural.states import Moments
from normsmith.surgery._choice import Where

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `reparametrize`, checked as far as they mean the same for all."""

    model: nn.Module
    name: str
    options: Any  # those written behind the name, read
    where: Where | None
    optimizers: list[Optimizer]
    data: Any
    batches: int | None
    every: int | None
    window: int
    loss: Loss | None
    moments: Moments
    process_group: dist.ProcessGroup | None

    def refuse(self, **useless: Any) -> None:
        """Raise for arguments that are set although they mean nothing here."""
        for key, value in useless.items():
            if value is not None:
                raise OptionError(f"reparametrize to {self.name!r} expects no {key}: got {value!r}; leave it out")

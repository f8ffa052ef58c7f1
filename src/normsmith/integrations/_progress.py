"""How far a training is, as its callbacks tell it."""

import math
from typing import Any

from torch import nn

from normsmith.errors import OptionError
from normsmith.methods._schedules import step_schedules


class Progress:
    """Moves the schedules of a model once per optimizer step, though asked more often."""

    def __init__(self, total: int | None) -> None:
        if total is not None and (type(total) is not int or total < 1):
            raise OptionError(
                f"ScheduleCallback expects total, the optimizer steps of the whole training, above zero: got {total!r}"
            )
        self.total = total
        self.last = -1

    def check(self, estimate: Any) -> int:
        """The total, by the framework's estimate unless it was given; an error if nobody knows."""
        if self.total is not None:
            return self.total
        if not isinstance(estimate, int | float) or not math.isfinite(estimate) or estimate < 1:
            raise OptionError(
                f"ScheduleCallback expects a training whose length is known: got {estimate!r} optimizer steps; say "
                "ScheduleCallback(total=...)"
            )
        return int(estimate)

    def step(self, model: nn.Module, step: int, estimate: Any) -> None:
        """The optimizer has made `step` steps; beyond the total the schedules stay at their end."""
        if step == self.last:
            return
        total = self.check(estimate)
        step_schedules(model, min(step, total), total)
        self.last = step

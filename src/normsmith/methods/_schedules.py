"""Schedules: what changes with the progress of training, not by gradients.

A module that has such a thing has a method `step_schedule(progress: float)`, from 0 at the start to 1 at the end. The methods of this
package use it for radii, limits and refreshes; a module of a user may have one too.
"""

from torch import nn

from normsmith.errors import OptionError


def step_schedules(model: nn.Module, step: int, total: int) -> None:
    """Move the schedules of all modules of `model`; call it after every optimizer step with the number of steps done so far.

    ```
    for step, (x, target) in enumerate(batches, start=1):
        ...
        optimizer.step()
        ns.step_schedules(model, step, total)
    ```
    """
    if any(type(value) is not int for value in (step, total)) or total < 1 or not 0 <= step <= total:
        raise OptionError(
            f"step_schedules expects step, the optimizer steps done, as an integer from 0 to total: got step={step!r}, "
            f"total={total!r}; total is that of the whole training"
        )
    for module in model.modules():
        schedule = getattr(module, "step_schedule", None)
        if callable(schedule):
            schedule(step / total)

"""Hugging Face: schedules for `transformers.Trainer`."""

from typing import Any

from normsmith.errors import DependencyError
from normsmith.integrations._progress import Progress

try:
    from transformers import TrainerCallback
except ImportError:
    raise DependencyError(
        "normsmith.integrations.huggingface expects transformers: pip install transformers accelerate"
    ) from None


class ScheduleCallback(TrainerCallback):
    """Calls `ns.step_schedules` after every optimizer step: `Trainer(..., callbacks=[ScheduleCallback()])`.

    `total` is the number of optimizer steps of the whole training, by default the trainer's `max_steps`.
    """

    def __init__(self, total: int | None = None) -> None:
        self.progress = Progress(total)

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **rest: Any) -> None:
        """Where the training starts, or goes on."""
        self.progress.last = -1
        self.progress.step(model, state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **rest: Any) -> None:
        """One optimizer step, of however many micro-batches, is done."""
        self.progress.step(model, state.global_step, state.max_steps)

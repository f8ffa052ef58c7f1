"""Lightning: schedules for its `Trainer`. Of `lightning`, never install 2.6.2 or 2.6.3, which were compromised."""

from typing import Any

from normsmith.errors import DependencyError
from normsmith.integrations._progress import Progress

try:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback
except ImportError:
    raise DependencyError(
        "normsmith.integrations.lightning expects Lightning: pip install 'lightning!=2.6.2,!=2.6.3'"
    ) from None


class ScheduleCallback(Callback):
    """Calls `ns.step_schedules` once per optimizer step: `Trainer(..., callbacks=[ScheduleCallback()])`.

    `total` is the number of optimizer steps of the whole training, by default the trainer's estimate. Several optimizers, as of a GAN,
    are counted together, by Lightning and here.
    """

    def __init__(self, total: int | None = None) -> None:
        super().__init__()
        self.progress = Progress(total)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Where the training starts, or goes on."""
        self.progress.last = -1
        self._move(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        """A batch is done, and with it perhaps an optimizer step."""
        self._move(trainer, pl_module)

    def _move(self, trainer: Any, pl_module: Any) -> None:
        estimate = trainer.estimated_stepping_batches * max(1, len(trainer.optimizers))
        self.progress.step(pl_module, trainer.global_step, estimate)

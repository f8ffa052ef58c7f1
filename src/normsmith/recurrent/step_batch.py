"""`StepBatchNorm`: batch norm in a recurrent layer, whose statistics differ from step to step."""

import contextlib
from collections.abc import Iterator
from typing import Any, Unpack

from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._options import Running
from normsmith.methods._running import BUFFERS
from normsmith.methods.batch import BatchNorm
from normsmith.moments import Moments


class StepBatchNorm(BatchNorm):
    """Batch norm over (N, C) at one step of a sequence: running statistics for each step, one weight and bias for all.

    The step is counted from 0, and said before the call, `layer.step = 3`: a call is that of any norm, for those who look at calls.

    Steps from `max_steps` on have the running statistics of the last one before; in training they are normalized by their own batch, which
    is not recorded. Rows are sequences that go on: where a single one does, it is normalized by the running statistics of its step, but
    for the first step, where it is a batch of one, which is refused as by batch norm.
    """

    step = 0

    def __init__(self, num_features: int, *, max_steps: int = 100, bias: bool = True, **running: Unpack[Running]) -> None:
        if type(max_steps) is not int or max_steps < 1:
            raise OptionError(f"StepBatchNorm expects max_steps as a positive integer: got {max_steps!r}; try 100")
        self.max_steps = max_steps
        super().__init__(num_features, **running)
        if not bias:
            self.register_parameter("bias", None)

    def statistics_shape(self) -> tuple[int, ...]:
        """Those of each step."""
        return (self.max_steps, self.num_features)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The rows of the step at hand, each a sequence that goes on."""
        with self._at(min(self.step, self.max_steps - 1)):
            alone = self.step > 0 and x.shape[0] == 1 and self.training and self.process_group is None
            if alone and self.running_mean is not None:
                self.check_input(x)
                return self.by_running(x)
            return super().forward(x)

    @contextlib.contextmanager
    def _at(self, row: int) -> Iterator[None]:
        """In this block the buffers are views of one row of what they are."""
        whole, collected = {key: self._buffers.get(key) for key in (*BUFFERS, "pending")}, self.collected
        try:
            for key, buffer in whole.items():
                if buffer is not None:
                    self._buffers[key] = buffer[:, row] if key == "pending" else buffer[row]
            if collected is not None:
                self.collected = collected[:, row]
            yield
        finally:
            self._buffers.update(whole)
            self.collected = collected

    def update(self, batch: Moments, *, final: bool = False, batches: Tensor | None = None) -> None:
        """Take the moments of a step into the running ones, if it has such of its own."""
        if self.step < self.max_steps:
            super().update(batch, final=final, batches=batches)

    def moves_as_torch(self, x: Tensor) -> bool:
        """Not beyond the last step that has statistics of its own."""
        return self.step < self.max_steps and super().moves_as_torch(x)

    def options(self) -> dict[str, Any]:
        """Those of batch norm, and how many steps have statistics of their own."""
        own: dict[str, Any] = {"max_steps": self.max_steps}
        if self.affine and self.bias is None:
            own["bias"] = False
        return {**own, **super().options()}

    def torch_twin(self, spatial_dims: int = 2) -> nn.Module | None:
        """None: torch has no such layer."""
        return None

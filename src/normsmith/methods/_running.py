"""Running statistics: the one place where they are kept, updated and loaded, for every method that has them."""

from typing import Any

import torch
from torch import Tensor, nn

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer
from normsmith.moments import Moments


def mix_running(
    cells: None, batch: None, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Standardized:
    """Evaluation: the running statistics as constants."""
    return Standardized(Moments(mean, var, 1), weight, bias, eps)


class RunningNormalizer(Normalizer):
    """A normalizer that averages its statistics over the batches of training, and uses the average in evaluation.

    `momentum` is the weight of the newest batch, as in torch; None averages all batches equally. The running variance is the unbiased
    one. `track_running_stats=False` leaves the buffers out: the batch's own statistics then serve in evaluation too.
    """

    _version = 2  # as torch's batch norm: 2 added num_batches_tracked

    num_features: int
    eps: float
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if momentum is not None and not 0 <= momentum <= 1:
            raise OptionError(
                f"{type(self).__name__} expects momentum, the weight of the newest batch, from 0 to 1, or None for the plain "
                f"average: got {momentum!r}"
            )
        super().__init__(num_features, eps=eps, affine=affine, device=device, dtype=dtype)
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        tracked = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype) if tracked else None)
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype) if tracked else None)
        count = torch.tensor(0, dtype=torch.long, device=device) if tracked else None
        self.register_buffer("num_batches_tracked", count)

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def precision(self) -> torch.dtype | None:
        """The type of the running statistics, or else of the parameters."""
        running = self._buffers.get("running_mean")
        return super().precision() if running is None else running.dtype

    @property
    def uses_running_stats(self) -> bool:
        """Whether this forward normalizes by the running statistics."""
        return not self.training and self.running_mean is not None

    def update(self, mean: Tensor, unbiased_var: Tensor) -> None:
        """Take one batch's statistics, num_features elements each and cut from the graph, into the running ones; only in training."""
        if not self.training or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased_var)):
                step = new.view(-1) if new.dtype == running.dtype else new.view(-1).to(running.dtype)
                if self.momentum is not None:
                    running.lerp_(step, self.momentum)
                else:  # divided on the device: reading the counter would stall a GPU and break a compiled graph
                    running.add_((step - running) / self.num_batches_tracked)

    def options(self) -> dict[str, Any]:
        return {
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
        }

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if (local_metadata.get("version") or 0) < 2 and self.num_batches_tracked is not None and key not in state_dict:
            state_dict[key] = torch.zeros_like(self.num_batches_tracked)  # a checkpoint from before the counter
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def numbered_twin(layer: RunningNormalizer, kind: str, spatial_dims: int) -> nn.Module:
    """torch.nn's `kind`1d, 2d or 3d with the options of `layer`."""
    twin: nn.Module = getattr(nn, f"{kind}{max(spatial_dims, 1)}d")(layer.num_features, **layer.options())
    return twin

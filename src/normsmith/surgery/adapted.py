"""`Adapted`: a normalizer in the place of a layer that had its channels last, or did more than normalize."""

from typing import Any

from torch import Tensor, nn


class Adapted(nn.Module):
    """`norm`, given channels in dimension 1 where they were in the last one, then the dropout and the activation of the layer before.

    What is not found here, such as `weight` or `num_features`, is looked up in `norm`, for models that reach into their layers.
    """

    def __init__(
        self, norm: nn.Module, *, channels_last: bool = False, drop: nn.Module | None = None, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.channels_last = channels_last
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: D102
        if self.channels_last:
            x = x.movedim(-1, 1)
        y: Tensor = self.norm(x, *args, **kwargs)
        if self.channels_last:
            y = y.movedim(1, -1)
        if self.drop is not None:
            y = self.drop(y)
        return y if self.act is None else self.act(y)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "norm":  # not there yet: do not look for it in itself
                raise
            return getattr(self.norm, name)

    def extra_repr(self) -> str:  # noqa: D102
        return "channels_last=True" if self.channels_last else ""

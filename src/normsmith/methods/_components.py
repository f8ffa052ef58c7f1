"""What methods with several sets of running statistics per channel share: one set for each of K components."""

from typing import Any

from torch import Tensor

from normsmith.errors import OptionError
from normsmith.methods._running import RunningNormalizer


def check_components(name: str, components: int) -> None:
    """Raise unless it is a number of components."""
    if type(components) is not int or components < 1:
        raise OptionError(f"{name} expects components as a positive integer: got {components!r}; try 3")


class ComponentNormalizer(RunningNormalizer):
    """A normalizer by K components, whose running mean and variance are (K, C); a component counts its own batches.

    It sets `components` before it calls this constructor.
    """

    components: int

    def statistics_shape(self) -> tuple[int, ...]:
        return (self.components, self.num_features)

    def part_of(self, statistic: Tensor) -> Tensor:
        """That of a batch norm for every component."""
        return statistic.expand(self.components, -1).clone() if statistic.dim() == 1 else statistic

    @property
    def rests(self) -> bool:
        """Whether this forward is one of evaluation."""
        return self.frozen or not self.training

    def options(self) -> dict[str, Any]:
        return {"components": self.components, **super().options()}

"""`Share`: what a process does of a trial. Alone it does all of it; of several ranks each takes a part of every batch."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from normsmith.trials.plan import Trial


class Share:
    """All of a trial: what ranks would have to agree on goes without saying."""

    rank = 0
    ranks = 1

    def begin(self, trial: Trial, root: str | None) -> None:
        """Have the other ranks begin with a trial too."""

    def end(self, error: str | None) -> str | None:
        """The first error of any rank, when all have come to the end of a trial."""
        return error

    def join(self, model: nn.Module) -> None:
        """Give a model the weights, and its normalizers the statistics, of all ranks."""

    def agree(self, value: Any) -> Any:
        """What the first rank says."""
        return value

    def seed(self, seed: int, epoch: int) -> None:
        """Have ranks draw numbers of their own in an epoch; a process alone goes on with those it has."""

    def part(self, batch: Tensor) -> Tensor:
        """The samples of a batch that are this rank's: in training at least one, in evaluation perhaps none."""
        return batch

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients those of all ranks together."""

    def sum(self, values: Tensor) -> Tensor:
        """Numbers, added up over the ranks."""
        return values


ALONE = Share()

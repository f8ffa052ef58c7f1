"""`Reparametrization`: layers in other coordinates, and what can be done with them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from normsmith.errors import ModelError
from normsmith.surgery.conversion import Conversion, Row, Swap

Refresh = Callable[[Any, int | None], None]
Fold = Callable[[], nn.Module]


class Reparametrization(Conversion):
    """A reparametrization that was done; `print` shows the table."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], swaps: Sequence[Swap], before: nn.Module) -> None:
        super().__init__(model, rows, swaps, None, before)
        self._refresh: Refresh | None = None
        self._fold: Fold | None = None
        self._folded = False

    def can(self, *, refresh: Refresh | None, fold: Fold) -> None:
        """Say how it is refreshed, if it can be, and folded."""
        self._refresh, self._fold = refresh, fold

    def refresh(self, data: Any, *, batches: int | None = None) -> None:
        """Choose the coordinates anew by what the layers see of `data`, or of so many batches of it; optimizers follow as was chosen."""
        self._expect_standing("refresh")
        if self._refresh is None:
            raise ModelError("refresh expects coordinates that depend on data: got weights that depend on themselves alone")
        self._refresh(data, batches)

    def fold(self) -> nn.Module:
        """Plain layers again, with the same function in evaluation and the same parameters where shapes allow; it cannot be undone."""
        self._expect_standing("fold")
        assert self._fold is not None
        self.model = self._fold()
        self._folded = True
        return self.model

    def undo(self) -> nn.Module:
        """The old layers back in their places, with the numbers they had; the optimizer's groups and its state of them too."""
        if self._folded:
            raise ModelError("undo expects a reparametrization that stands: got one that was folded; keep a copy to go back to")
        return super().undo()

    def _expect_standing(self, verb: str) -> None:
        if self._undone or self._folded:
            what = "folded" if self._folded else "undone"
            raise ModelError(f"{verb} expects a reparametrization that stands: got one that was {what}; reparametrize again")

    def _title(self) -> str:
        return super()._title().replace("converted", "reparametrized")

"""`Conversion`: what a conversion did, as a table and as data, and the way back."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from normsmith.errors import ModelError
from normsmith.methods._running import BUFFERS
from normsmith.surgery._console import as_text


@dataclass(frozen=True)
class Row:
    """One layer: what it was and is, what it took over, what found no place, what is new in it; or why it was left."""

    layer: str
    old: str
    new: str | None  # None: left as it was
    carried: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    error: float | None = None  # of the output on the data given, in evaluation, relative to the largest; None if not measured
    reason: str = ""  # why it was left, or its affine map not fitted
    also: tuple[str, ...] = ()  # its other names, where parents share it


@dataclass(frozen=True, eq=False)
class Swap:
    """One layer in the place of another, in every parent."""

    old: nn.Module
    new: nn.Module
    slots: tuple[tuple[nn.Module, str], ...]

    def do(self) -> None:
        """Put the new layer in."""
        for parent, key in self.slots:
            parent._modules[key] = self.new

    def undo(self) -> None:
        """Put the old one back."""
        for parent, key in self.slots:
            parent._modules[key] = self.old


class Conversion:
    """A conversion that was done; `print` shows the table."""

    def __init__(
        self, model: nn.Module, rows: Sequence[Row], swaps: Sequence[Swap], error: float | None, before: nn.Module
    ) -> None:
        self.model = model  # the one given, edited in place; only where it was itself the layer is it another
        self.rows = tuple(rows)
        self.output_error = error  # of the whole model on the data given, as that of a layer
        self._swaps = swaps
        self._before = before
        self._saved = [(t, t.detach().clone()) for swap in swaps for t in state(swap.old)]
        self._undo_more: list[Callable[[], object]] = []
        self._undone = False

    def when_undone(self, *actions: Callable[[], object]) -> None:
        """Have something else undone too."""
        self._undo_more += actions

    @property
    def converted(self) -> list[str]:
        """The names of the layers that were converted."""
        return [row.layer for row in self.rows if row.new is not None]

    @property
    def report(self) -> dict[str, Any]:
        """The table as plain data."""
        return {
            "model": type(self._before).__name__,
            "converted": len(self.converted),
            "left": len(self.rows) - len(self.converted),
            "output_error": self.output_error,
            "layers": [asdict(row) for row in self.rows],
        }

    def undo(self) -> nn.Module:
        """The old layers back in their places, with the numbers they had when they were converted; the optimizer's groups too.

        What was trained since in other layers stays.
        """
        if self._undone:
            raise ModelError("undo expects a conversion that stands: got one that was undone already; convert again")
        for swap in self._swaps:
            for parent, key in swap.slots:
                if parent._modules.get(key) is not swap.new:
                    raise ModelError(
                        f"undo expects the layers where the conversion put them: got {type(parent._modules.get(key)).__name__} at "
                        f"{key!r} of {type(parent).__name__}; undo later conversions first"
                    )
        for swap in self._swaps:
            swap.undo()
            swap.old.train(swap.new.training)
            where = next((t.device for t in state(swap.new)), None)
            if where is not None:
                swap.old.to(where)
        with torch.no_grad():
            for tensor, value in self._saved:
                tensor.copy_(value)
        for undo in self._undo_more:
            undo()
        self._undone = True
        return self._before

    def __rich__(self) -> Table:
        measured = any(row.error is not None for row in self.rows)
        table = Table(box=None, pad_edge=False, title=self._title(), title_justify="left")
        for heading in ("layer", "old → new", "carried", "dropped", "new in it", *(("error",) if measured else ())):
            table.add_column(heading, overflow="fold", no_wrap=heading in ("layer", "error"))
        for row in self.rows:
            name = ", ".join((row.layer, *row.also)) or "(the model)"
            change = f"{row.old} → {row.new}" if row.new else f"{row.old}, left: {row.reason}"
            if row.new and row.reason:
                change += f", not fitted: {row.reason}"
            lists = (_short(row.carried), _short(row.dropped), _short(row.fresh))
            table.add_row(name, change, *lists, *(("" if row.error is None else f"{row.error:.1e}",) if measured else ()))
        return table

    def _title(self) -> str:
        left = len(self.rows) - len(self.converted)
        text = f"{len(self.converted)} layers converted" + (f", {left} left" if left else "")
        return text + ("" if self.output_error is None else f"; error of the model's output {self.output_error:.1e}")

    def __str__(self) -> str:
        return as_text(self.__rich__(), width=160)

    def __repr__(self) -> str:
        return f"<Conversion: {self._title()}>"


def _short(names: Sequence[str]) -> str:
    """Names in a line, the three buffers of running statistics as one."""
    whole = set(BUFFERS) <= set(names)
    kept = [name for name in names if not (whole and name in BUFFERS)]
    return ", ".join([*kept, "running statistics"] if whole else kept)


def state(layer: nn.Module) -> list[Tensor]:
    """All parameters and buffers of a layer."""
    return [*layer.parameters(), *layer.buffers()]

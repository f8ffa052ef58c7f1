"""A classifier of sequences: LSTM layers and a linear one."""

import torch
from torch import Tensor, nn

from normsmith.errors import InputError
from normsmith.models._blocks import Norm, expect_flags, expect_sizes
from normsmith.models._lstm_cell import LSTMCell


class LSTMClassifier(nn.Module):
    """LSTM layers with a norm for each gate, and a linear layer on the last output (Hochreiter and Schmidhuber, 1997).

    Sequences are (N, T, in_channels). With `rows`, images (N, in_channels, H, image_size) are read row by row, as sequences of H steps.
    Norms see (N, width) at each step: those that need several positions have none here.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = None,
        width: int = 100,
        layers: int = 1,
        gain: float = 0.1,
        rows: bool = False,
    ) -> None:
        super().__init__()
        expect_sizes("LSTMClassifier", num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        expect_sizes("LSTMClassifier", width=width, layers=layers)
        expect_flags("LSTMClassifier", rows=rows)
        self.rows = rows
        self.numbers = in_channels * image_size if rows else in_channels  # at each step
        self.cells = nn.ModuleList(LSTMCell(width if i else self.numbers, width, norm=norm, gain=gain) for i in range(layers))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes); of the sequence number n the first lengths[n] steps count."""
        if self.rows:
            x = x.movedim(2, 1).flatten(2)
        self._check(x, lengths)
        outputs = x
        for cell in self.cells:
            outputs, last = _through(cell, outputs, lengths)  # type: ignore[arg-type]
        logits: Tensor = self.head(last)
        return logits

    def _check(self, x: Tensor, lengths: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[2] != self.numbers or x.shape[1] < 1:
            raise InputError(
                f"LSTMClassifier expects sequences of {self.numbers} numbers, (N, T, {self.numbers}): got shape {tuple(x.shape)}"
            )
        if lengths is None:
            return
        fits = lengths.shape == x.shape[:1] and not lengths.is_floating_point()
        if not fits or int(lengths.min()) < 1 or int(lengths.max()) > x.shape[1]:
            raise InputError(
                f"LSTMClassifier expects lengths as {x.shape[0]} integers from 1 to {x.shape[1]}: got {lengths.tolist()}"
            )


def _through(cell: LSTMCell, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """The outputs of all steps, (N, T, hidden), and the last of each sequence; one that has ended takes no part in a step."""
    h = x.new_zeros(x.shape[0], cell.hidden_size)
    c, outputs = h, []
    for t, step in enumerate(x.unbind(1)):
        if lengths is None:
            h, c = cell(step, h, c)
        else:
            going = (lengths > t).nonzero().flatten()
            if len(going) == 0:
                break
            after = cell(step[going], h[going], c[going])
            h, c = (old.to(new.dtype).index_copy(0, going, new) for old, new in zip((h, c), after, strict=True))
        outputs.append(h)
    return torch.stack(outputs, 1), h

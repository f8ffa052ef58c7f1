"""A classifier of sequences: LSTM layers and a linear one."""

from torch import Tensor, nn

from normsmith.errors import InputError
from normsmith.models._blocks import Norm, expect_flags, expect_sizes
from normsmith.recurrent.lstm import LSTM


class LSTMClassifier(nn.Module):
    """LSTM layers with a norm for each product of the gates, and a linear layer on the last output (Hochreiter and Schmidhuber, 1997).

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
        self.lstm = LSTM(self.numbers, width, layers, norm=norm, gamma=gain, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes); of the sequence number n the first lengths[n] steps count."""
        if self.rows:
            x = x.movedim(2, 1).flatten(2)
        if x.dim() != 3:
            raise InputError(
                f"LSTMClassifier expects sequences of {self.numbers} numbers, (N, T, {self.numbers}): got shape {tuple(x.shape)}"
            )
        _, (h, _) = self.lstm(x, lengths=lengths)
        logits: Tensor = self.head(h[-1])
        return logits

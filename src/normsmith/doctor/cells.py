"""`Cells`: mean and variance of single samples, of some channels and some samples, from which batches of any size can be drawn."""

import torch
from torch import Tensor

from normsmith.cells import cut, layout
from normsmith.kernels import reference
from normsmith.kernels.choose import backend_for
from normsmith.moments import Moments

SAMPLES, CHANNELS = 64, 64


def chosen(channels: int) -> Tensor:
    """At most CHANNELS of them, evenly spaced."""
    kept = min(channels, CHANNELS)
    return torch.arange(kept) * channels // kept


def thinned(x: Tensor, samples: int) -> Tensor:
    """The chosen channels of the first samples of x, cut, in a type that statistics can be taken in."""
    x = cut(x[:samples].detach())
    if x.shape[1] > CHANNELS:
        step, even = x.shape[1] // CHANNELS, x.shape[1] % CHANNELS == 0 and layout(x) == "rows"
        x = x[:, ::step] if even else x.index_select(1, chosen(x.shape[1]).to(x.device))  # a view where the kernels can take it
    return reference.widened(x)


class Cells:
    """(mean, var) of the cells of at most SAMPLES samples, spread over the first two batches.

    Samples are seldom made of independent positions, so a batch is drawn from whole samples.
    """

    def __init__(self, channels: int, device: torch.device | str | None = None) -> None:
        self.channels, self._device = min(channels, CHANNELS), device
        self._held = 0
        self._parts: list[tuple[Tensor, Tensor]] = []

    def wanted(self, samples: int) -> int:
        """How many samples to take of a batch of so many."""
        return min(samples, SAMPLES - self._held, SAMPLES // 2)

    @property
    def full(self) -> bool:
        """Whether no more samples are wanted."""
        return self._held >= SAMPLES

    def add(self, x: Tensor) -> tuple[Tensor, Moments | None]:
        """Take some samples of a batch of shape (N, C, ...); what was taken of it, and its cells."""
        samples = self.wanted(x.shape[0])
        if samples < 1:
            return x[:0], None
        thin = thinned(x, samples)
        cells = backend_for(thin).cell_moments(thin)
        self._held += samples
        self._parts.append((cells.mean, cells.var))
        return thin, cells

    @property
    def mean_and_var(self) -> Tensor:
        """Of the samples that were finite, (2, samples, channels), float64."""
        empty = torch.zeros((2, 0, self.channels), dtype=torch.float64)
        every = torch.cat([empty, *(torch.stack(part).double().cpu() for part in self._parts)], 1)
        finite = every.isfinite()
        return every if bool(finite.all()) else every[:, finite.all(2).all(0)]

    def merge(self, other: "Cells") -> "Cells":
        """Those of both; where there are too many, evenly spaced ones."""
        every = torch.cat([self.mean_and_var, other.mean_and_var], 1)
        held = every.shape[1]
        return self._of(every if held <= SAMPLES else every[:, torch.arange(SAMPLES) * held // SAMPLES])

    def _of(self, every: Tensor) -> "Cells":
        cells = Cells(self.channels, self._device)
        cells._held = every.shape[1]
        cells._parts = [(every[0], every[1])]
        return cells

    def state(self) -> list[Tensor]:
        """The tensors that are all there is to it, with room for all samples; a sample that is not there is NaN."""
        every = self.mean_and_var
        state = torch.full((2, SAMPLES, self.channels), torch.nan, dtype=torch.float64)
        state[:, : every.shape[1]] = every
        return [state.to(self._device)]

    def restored(self, state: list[Tensor]) -> "Cells":
        """Cells like these with that state."""
        every = state[0].cpu()
        return self._of(every[:, every[0].isfinite().all(1)])

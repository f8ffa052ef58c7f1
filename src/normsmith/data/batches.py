"""`Batches`: the batches of a split, whose order and augmentation depend on the seed, the epoch and the step alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normsmith.data._seeds import generator
from normsmith.data.augment import Augmentation
from normsmith.data.dataset import Split
from normsmith.errors import OptionError

_AT_ONCE = 1 << 18  # elements that are made ready together, so that small batches do not each pay for every operation


class Batches:
    """The batches (x, y) of a split.

    ```
    batches = ns.data.Batches(digits.train, 32, seed=1, augment="crop:padding=1", mean=digits.mean, std=digits.std)
    for epoch in range(3):
        for x, y in batches.epoch(epoch):
            ...
    ```

    x is of `dtype`, scaled so that 255 of a uint8 is 1, then standardised by `mean` and `std`. What epoch `e` yields at step `k` depends on
    `seed`, `e` and `k` alone: `epoch(e, start=k)` goes on to the bit where another run stopped. No random numbers but its own are used.
    With another `view`, any word, the same samples come in the same order, and the augmentation draws other numbers for them.
    The split lies on `device`, in its own type. Iterated over, it is epoch 0.
    """

    def __init__(
        self,
        split: Split,
        size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: str | None = None,
        view: str | None = None,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if type(size) is not int or size < 1:
            raise OptionError(f"Batches expects size, the samples of a batch, as a positive integer: got {size!r}")
        if drop_last and size > len(split):
            raise OptionError(
                f"Batches with drop_last expects a size of at most the {len(split)} samples: got {size}; nothing would be left"
            )
        self.size, self.seed, self.shuffle, self.drop_last, self.dtype = size, seed, shuffle, drop_last, dtype
        clips = split.inputs.ndim == 5 and memory_format == torch.channels_last
        self.memory_format = torch.channels_last_3d if clips else memory_format
        self.inputs, self.targets = split.inputs.to(device), split.targets.to(device)
        self._mean = self._per_channel("mean", mean, 0.0)
        self._std = self._per_channel("std", std, 1.0)
        if not bool((self._std > 0).all()):
            raise OptionError(f"Batches expects deviations over zero: got std={std!r}")
        self._purpose = ("augment",) if view is None else ("augment", view)
        self.augment = Augmentation(augment, split, self._mean) if augment else None

    def __len__(self) -> int:
        return len(self.inputs) // self.size if self.drop_last else -(-len(self.inputs) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch from step `start` on."""
        if epoch < 0 or not 0 <= start <= len(self):
            raise OptionError(
                f"epoch expects an epoch from 0 and a start from 0 to {len(self)}, the number of batches: got {epoch}, {start}"
            )
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order(epoch)
        per_sample = self.inputs[0].numel()
        together = max(1, _AT_ONCE // (per_sample * self.size))
        drawn = self._drawn(epoch, len(order))
        for first in range(start, len(self), together):
            here = slice(first * self.size, (first + together) * self.size)
            raw, y = self.inputs[order[here]], self.targets[order[here]]
            if self.augment:
                raw, y = self.augment(raw, y, [numbers[here] for numbers in drawn])
            x = self._standardised(raw)
            yield from zip(torch.split(x, self.size), torch.split(y, self.size), strict=True)

    def _drawn(self, epoch: int, samples: int) -> list[Tensor]:
        """What the augmentation draws for each place in the order of an epoch."""
        if self.augment is None:
            return []
        return self.augment.draw(samples, generator(self.seed, *self._purpose, epoch), self.inputs.device)

    def order(self, epoch: int) -> Tensor:
        """The indices of the samples in the order of an epoch; with `drop_last` the last ones are not used."""
        samples = len(self.inputs)
        order = (
            torch.randperm(samples, generator=generator(self.seed, "order", epoch)) if self.shuffle else torch.arange(samples)
        )
        return order[: len(self) * self.size].to(self.inputs.device)

    def _standardised(self, raw: Tensor) -> Tensor:
        """Numbers of `dtype`. Each element goes its own way, so that no bit depends on how many samples are made ready together."""
        scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        x = raw.float().sub_(self._mean * scale).mul_(1 / (self._std * scale))  # `raw` was gathered: nobody else has it
        return x.to(self.dtype).contiguous(memory_format=self.memory_format)

    def _per_channel(self, name: str, values: Sequence[float] | Tensor | None, default: float) -> Tensor:
        """The values, one for each channel, of a shape that broadcasts against inputs."""
        channels, rank = self.inputs.shape[1], self.inputs.ndim
        tensor = torch.full((channels,), default) if values is None else torch.as_tensor(values, dtype=torch.float32)
        if tuple(tensor.shape) != (channels,):
            raise OptionError(f"Batches expects {name} with a number for each of {channels} channels: got {values!r}")
        return tensor.to(self.inputs.device).view(1, channels, *(1,) * (rank - 2))

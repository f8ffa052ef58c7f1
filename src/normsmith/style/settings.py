"""What a training of style transfer is given: all of it, with defaults for minutes on two cores."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from normsmith.errors import OptionError


@dataclass(frozen=True)
class Settings:
    """How the encoder and the decoder are made, from what, and for how long.

    Without `minutes` both are trained for their steps, and one seed gives one result, to the bit, on a machine and a number of threads.
    With `minutes`, of which the encoder gets its share, they stop when their time or their steps are over: how far that is depends on the
    machine.
    """

    pictures: str = "tiny-imagenet"  # a set for classification, as `data.load` takes it
    paintings: str | None = "pacs:domain=art_painting"  # pictures beside those, where they are there; None for none
    depths: tuple[int, ...] = (1, 1, 2)
    width: int = 32
    encoder_steps: int = 6000
    encoder_batch: int = 32
    encoder_rate: float = 2e-3
    decoder_steps: int = 20000
    decoder_batch: int = 8
    decoder_rate: float = 1e-3
    rehearsal: float = 0.3  # the share of its training in which the decoder only learns to draw a picture from its own features
    crop: int = 64  # side of the pictures that the decoder sees
    style_weight: float = 10.0
    minutes: float | None = None
    encoder_share: float = 0.35
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("encoder_steps", "decoder_steps", "encoder_batch", "decoder_batch", "crop", "width"):
            value = getattr(self, name)
            _expect(type(value) is int and value >= 1, name, "as a positive integer", value)
        for name in ("encoder_rate", "decoder_rate"):
            _expect(getattr(self, name) > 0, name, "above zero", getattr(self, name))
        _expect(0 <= self.rehearsal < 1, "rehearsal", "from 0 to below 1", self.rehearsal)
        _expect(0 < self.encoder_share < 1, "encoder_share", "between 0 and 1", self.encoder_share)
        limit = self.minutes
        _expect(limit is None or (limit > 0 and math.isfinite(limit)), "minutes", "above zero", limit)
        least = 2 ** len(self.depths) + 1
        _expect(self.crop >= least, "crop", f"of at least {least}, as pools halve it", self.crop)

    def lasting(self) -> dict[str, Any]:
        """What must be the same for a training to go on; how long it may take may change."""
        values = {**asdict(self), "depths": list(self.depths)}
        return {key: value for key, value in values.items() if key not in {"minutes", "encoder_share"}}


def _expect(holds: bool, name: str, what: str, got: object) -> None:
    if not holds:
        raise OptionError(f"training style transfer expects {name} {what}: got {got!r}")

"""How long the parts of a closer look take: measured once, promised before they start, and held to a budget."""

import time
from dataclasses import dataclass, field

from rich.console import Console

WORTH_SAYING = 2.0  # seconds


@dataclass(eq=False)
class Clock:
    """Seconds, since it was made; `forward` and `backward`, a forward with its backward, are those of one batch."""

    budget: float | None
    forward: float = 0.0
    backward: float = 0.0
    expected: float = 0.0
    left_out: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return float("inf") if self.budget is None else self.budget - self.spent

    def has(self, seconds: float, what: str) -> bool:
        """Whether there is time for something; what there is none for is taken down."""
        if seconds <= self.left:
            return True
        self.left_out.append(
            f"{what}: needs about {seconds:.2g} s, and {max(self.left, 0):.2g} s of budget={self.budget:g} were left"
        )
        return False

    def announce(self, seconds: float) -> None:
        """Say what to expect, if it is worth waiting for."""
        self.expected = seconds
        if seconds > WORTH_SAYING:
            limit = "" if self.budget is None else f", stopped at {self.budget:g} s"
            Console(stderr=True, highlight=False).print(f'depth="full": about {seconds:.0f} s{limit}')

"""How far a training is: a bar with the time that remains on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SPEAK_EVERY = 30.0  # seconds between lines
Tell = Callable[[float, int, float], None]  # the share that is done, the step, its loss


@contextmanager
def shown(name: str, console: Console) -> Iterator[Tell]:
    """What tells of each step."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(name, total=1.0)
            yield lambda share, step, loss: progress.update(
                task, completed=share, description=f"{name}, step {step}, loss {loss:.3f}"
            )
        return
    began = spoken = time.monotonic()
    first: float | None = None

    def tell(share: float, step: int, loss: float) -> None:
        nonlocal spoken, first
        now = time.monotonic()
        first = share if first is None else first
        if now - spoken >= SPEAK_EVERY and share > first:
            spoken = now
            left = (now - began) * (1 - share) / (share - first) / 60
            console.print(f"{name}: step {step}, loss {loss:.3f}, {share:.0%}, about {left:.0f} min left", soft_wrap=True)

    yield tell

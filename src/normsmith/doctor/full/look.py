"""The closer look: all its parts, in order, as far as the budget reaches. A part that fails is named, and the others go on."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from normsmith.analysis._likelihood import logits
from normsmith.analysis._still import holding
from normsmith.doctor.full.clock import Clock
from normsmith.doctor.full.closer import Closer
from normsmith.doctor.full.curvature import along_the_gradient, conditions, shifts
from normsmith.doctor.full.slopes import pass_back
from normsmith.doctor.full.swaps import swap
from normsmith.doctor.subject import Subject, labels
from normsmith.errors import OptionError
from normsmith.surgery._batches import batches_of
from normsmith.surgery._models import tensors

if TYPE_CHECKING:
    from normsmith.doctor.observation import Layer, Observation

BATCHES, BYTES = 8, 64 << 20  # what is kept of the data
FOR_GRADIENTS = 4
SLOW = 1.0  # seconds, from which on a measurement is not worth a second one
LR = 0.1  # of the step that smoothness and covariate shift look along, if no optimizer tells


class Keep:
    """The first batches that a model took, for the closer look."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self._bytes = 0

    def add(self, batch: Any) -> None:
        """Keep a batch if there is room."""
        size = sum(t.numel() * t.element_size() for t in tensors(batch))
        if len(self.batches) < BATCHES and (not self.batches or self._bytes + size <= BYTES):
            self.batches.append(batch)
            self._bytes += size


def check_budget(depth: str, budget: Any) -> None:
    """Raise for a depth or a budget that cannot be."""
    if depth not in ("default", "full"):
        raise OptionError(f"examine expects depth as 'default' or 'full': got {depth!r}")
    if budget is None:
        return
    if depth != "full":
        raise OptionError('examine expects budget= with depth="full", whose time it limits: got it without; leave it out')
    if not isinstance(budget, int | float) or not math.isfinite(budget) or budget <= 0:
        raise OptionError(f"examine expects budget as a number of seconds above 0: got {budget!r}")


def look_closer(seen: "Observation", subject: Subject, batches: Sequence[Any], budget: float | None) -> Closer:
    """All parts over these batches; what is left out goes to `seen.missing`."""
    closer, clock = Closer(lr=_rate(subject)), Clock(budget)
    layers = [layer for layer in seen.layers if layer.reached]
    for layer in layers:
        if layer.by_batch and layer.moments is not None:
            deviation = (layer.moments.var.flatten() + layer.eps).sqrt()
            closer.gains[layer.name] = float((layer.gain().cpu().flatten().abs() / deviation).median())
    look = _Look(seen, subject, list(batches), layers, closer, clock)
    if batches and look.measure():
        look.announce()
        look.parts()
    seen.missing += clock.left_out
    closer.expected, closer.seconds = clock.expected, clock.spent
    return closer


def _rate(subject: Subject) -> float:
    """The learning rate that the optimizer has."""
    return LR if subject.optimizer is None else float(subject.optimizer.param_groups[0]["lr"])


@dataclass(eq=False)
class _Look:
    seen: "Observation"
    subject: Subject
    batches: list[Any]
    layers: list["Layer"]
    closer: Closer
    clock: Clock
    categorical: bool = False  # whether the loss is the cross entropy of (N, K)

    @cached_property
    def moving(self) -> list["Layer"]:
        """The layers that normalize by the batch, the widest gap first: if the time does not reach, these are the ones to know about."""
        return sorted((layer for layer in self.layers if layer.by_batch), key=lambda layer: -_gap(layer))

    def measure(self) -> bool:
        """Whether there is a loss; how long a forward takes, and a forward with its backward."""
        first, model = self.batches[0], self.subject.model
        try:
            with holding(model, "examine", evaluating=True) as still, torch.no_grad():
                started = time.perf_counter()
                output = still.call(lambda: self.subject.output(model, first), {})
                self.clock.forward = time.perf_counter() - started
                loss = self.subject.value(model, output, first)
            if self.subject.loss is None:
                z = logits(output, "examine")
                self.categorical = z.dim() == 2 and labels(first, z) is not None
        except Exception as error:  # noqa: BLE001  (a loss of anyone's)
            self.seen.missing.append(f"what needs a loss: {type(error).__name__}: {_line(error)}")
            self._try("the strength of gamma decay", lambda: self._decays(with_loss=False))
            return False
        if not bool(loss.isfinite()):
            self.seen.missing.append("what needs a loss: it is NaN or infinite on the first batch")
            return False
        for _ in range(2):  # the first may have to compile a kernel
            started = time.perf_counter()
            self._try("gradients", lambda: pass_back(self.subject, self.layers, [first]))
            self.clock.backward = time.perf_counter() - started
            if self.clock.backward > SLOW:
                break
        return True

    def announce(self) -> None:
        """What to expect."""
        number, moving = len(self.batches), len(self.moving)
        before = len({layer.before for layer in self.layers if layer.before})
        forwards = number * (2 + 2 * moving) if moving else 0
        backwards = min(FOR_GRADIENTS, number) + 10 + before + 1 + (before if self.categorical else 0)
        self.clock.announce(self.clock.forward * forwards + self.clock.backward * backwards)

    def parts(self) -> None:
        """One after the other: what tells most for its time first."""
        clock, closer, subject, first = self.clock, self.closer, self.subject, self.batches[0]
        some = self.batches[:FOR_GRADIENTS]
        if clock.has(clock.backward * len(some), "gradients"):
            self._try("gradients", self._decays)
        if self.moving:
            self._try("the loss by layer swaps", self._swaps)
        if clock.has(clock.backward * 10, "smoothness along the gradient"):
            self._try("smoothness along the gradient", self._smooth)
        before = len({layer.before for layer in self.layers if layer.before})
        if clock.has(clock.backward * (before + 1), "internal covariate shift"):
            self._try(
                "internal covariate shift",
                lambda: closer.shifts.update(shifts(subject, self.layers, first, closer.lr)),
            )
        if not self.categorical:
            self.seen.missing.append(
                "the Fisher blocks: they need logits (N, K), labels in the batch, and no loss= of your own"
            )
            return
        self._try(
            "the Fisher blocks",
            lambda: closer.conditions.update(conditions(subject, self.layers, first, clock, self.seen.missing)),
        )

    def _decays(self, *, with_loss: bool = True) -> None:
        some = batches_of(self.batches, FOR_GRADIENTS, "gradients across normalizers")
        found = pass_back(self.subject, self.layers, some, with_loss=with_loss)
        if with_loss:
            self.closer.slopes = found
        for layer in self.layers:
            assert layer.profile is not None
            strength = found[layer.name].decay(layer.profile.moments.kurtosis)
            if strength is not None:
                self.closer.decays[layer.name] = strength

    def _swaps(self) -> None:
        layers = [(layer.name, layer.module) for layer in self.moving]
        self.closer.swaps = swap(self.subject, layers, self.batches, self.clock)

    def _smooth(self) -> None:
        self.closer.smooth = along_the_gradient(self.subject, self.layers, self.batches[0], self.closer.lr)

    def _try(self, what: str, part: Callable[[], Any]) -> None:
        try:
            part()
        except Exception as error:  # noqa: BLE001  (models and losses of anyone's)
            reason = f"{what}: {type(error).__name__}: {_line(error)}"
            self.seen.missing += [reason] if reason not in self.seen.missing else []


def _gap(layer: "Layer") -> float:
    from normsmith.doctor.checks._gap import gap  # noqa: PLC0415  (it looks at observations, which hold what is found here)

    return gap(layer).size


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]

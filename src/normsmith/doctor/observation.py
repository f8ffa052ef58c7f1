"""What was seen of a model: per layer the exact moments of its inputs and how it was used, without a verdict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from normsmith.doctor._describe import Extremes
from normsmith.doctor.calls import Calls
from normsmith.doctor.cells import Cells
from normsmith.doctor.consistency import Consistency, Taken, take
from normsmith.doctor.full.closer import Closer
from normsmith.doctor.noise import NoisePoint
from normsmith.doctor.profile import Profile
from normsmith.doctor.samples import Outlying, Sample, Specificity
from normsmith.moments import Moments
from normsmith.surgery._source import Source

if TYPE_CHECKING:
    from normsmith.doctor.checks._gap import Gap
    from normsmith.doctor.shift import Shift


class _Call(NamedTuple):
    """What is left of a call of a layer."""

    extremes: Extremes
    samples: int
    numbers: Tensor | None


@dataclass(eq=False)
class Layer:
    """One normalizer, and what came by."""

    name: str
    module: nn.Module
    source: Source
    calls: int = 0
    samples: list[int] = field(default_factory=list)  # of each call
    positions: int = 0  # per sample, of the smallest input
    seconds: float = 0.0  # that looking took
    profile: Profile | None = None  # four moments and a histogram per channel
    cells: Cells | None = None  # moments of some single samples
    outlying: Outlying | None = None  # the samples furthest out
    before: str = ""  # the convolution or linear layer whose output it reads, if directly
    biased: bool = False  # whether that one has a bias
    flips: int = 0  # calls whose output has another memory format than their input
    flip: str = ""  # from which format to which
    by_mates: float = 0.0  # how far the output of a sample moves with what is in the batch beside it, relative
    by_padding: float = 0.0  # the same with padding behind it
    taken: Taken | None = None  # of the first batch
    consistency: Consistency | None = None  # what follows from that; these five are filled in at the end of the observation
    noise_curve: tuple[NoisePoint, ...] = ()
    top_samples: tuple[Sample, ...] = ()
    specificity: Specificity | None = None
    shift: "Shift | None" = None
    gap: "Gap | None" = None
    each: Calls = field(default_factory=Calls)  # what each call alone had
    _call: _Call | None = None  # the last one, if it was not yet looked at

    def take(self, x: Tensor, numbers: Tensor | None = None) -> None:
        """Add the input of one call, (N, C, ...), with the numbers of the samples that its rows are of, where they are known."""
        self._end_call()
        if self.profile is None or self.cells is None:
            self.profile, self.cells = Profile(x.shape[1], x.device), Cells(x.shape[1], x.device)
            self.outlying = Outlying(x.shape[1], x.device)
            self.taken = take(*self.cells.add(x))
        elif not self.cells.full:
            self.cells.add(x)
        self.each.begin(self.profile.moments.facts)
        self._call = _Call(self.profile.add(x), x.shape[0], numbers)
        if (
            x.shape[0] * x.shape[1] == x.numel()
        ):  # extremes as large as x, made anew by every call: too much to keep of all layers
            self._end_call()

    def end_forward(self) -> None:
        """Come to the end of what the calls of one forward gave."""
        begin = time.perf_counter()
        self._end_call()
        self.each.end_forward()
        self.seconds += time.perf_counter() - begin

    def _end_call(self) -> None:
        """Do what can wait until the next call or the end of the forward: layer after layer, it takes half the time."""
        call, self._call = self._call, None
        if call is None or self.profile is None or self.outlying is None:
            return
        self.each.end(self.profile.moments.facts, call.samples)
        if call.numbers is not None:
            self.outlying.look(call.extremes, call.numbers, self.profile.moments)

    @property
    def calls_in_forward(self) -> int:
        """The most in one forward of the model."""
        return self.each.most

    @property
    def apart(self) -> float:
        """Of a layer called several times in a forward: how far the calls' means lie apart, in deviations."""
        return self.each.apart

    @property
    def nonfinite(self) -> int:
        """Calls with NaN or infinity in the input."""
        self._end_call()
        return self.each.nonfinite

    @property
    def means(self) -> Moments | None:
        """How the means of batches scatter, each with the weight of its samples."""
        self._end_call()
        return self.each.means

    @property
    def reached(self) -> bool:
        """Whether anything finite came by."""
        return self.profile is not None and bool(self.profile.moments.count.any())

    @property
    def moments(self) -> Moments | None:
        """Of all finite inputs, per channel, (1, C), in float64."""
        if self.profile is None or not self.reached:
            return None
        found = self.profile.moments
        return Moments(*(t.cpu().unsqueeze(0) for t in (found.mean, found.var, found.count)))

    @property
    def largest(self) -> float:
        """The largest absolute value that came in."""
        if self.profile is None:
            return 0.0
        return max(float(self.profile.moments.high.max()), -float(self.profile.moments.low.min()))

    @property
    def kind(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def tracked(self) -> bool:
        """Whether it keeps running statistics."""
        return getattr(self.module, "running_mean", None) is not None

    @property
    def by_batch(self) -> bool:
        """Whether it normalizes by batch statistics in training, and by running ones in evaluation."""
        return (
            self.source.method != "instance"
            and self.tracked
            and not getattr(self.module, "frozen", False)
            and self.learns_statistics
        )

    @property
    def learns_statistics(self) -> bool:
        """Whether its statistics would move in training."""
        return self.source.method != "frozen"

    def scatter(self) -> Tensor:
        """The variance of the mean of a batch of the average size, per channel; NaN if no batch was finite as a whole."""
        if self.means is None:
            assert self.profile is not None
            return torch.full((self.profile.moments.channels,), torch.nan, dtype=torch.float64)
        calls = len(self.samples)
        return self.means.var.flatten() * calls / max(calls - 1, 1)

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance in float64; of several sets, one for each step, what those are together that have seen data."""
        module: Any = self.module
        mean, var = module.running_mean.detach().double(), module.running_var.detach().double()
        if mean.dim() == 1:
            return mean, var
        seen = module.num_batches_tracked > 0
        together = (Moments(mean[seen], var[seen], 1) if bool(seen.any()) else Moments(mean, var, 1)).pool(0)
        return together.mean.flatten(), together.var.flatten()

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return float(getattr(self.module, "eps", 0.0) or 0.0)

    def gain(self) -> Tensor:
        """The weight per channel, ones if there is none."""
        weight = getattr(self.module, "weight", None)
        if weight is None:
            return torch.ones((), dtype=torch.float64)
        gain: Tensor = weight.detach().double()
        return gain


@dataclass(eq=False)
class Observation:
    """All layers, and the run as a whole."""

    model: nn.Module  # without what it may be wrapped in
    layers: list[Layer]
    batches: int = 0
    samples: int = 0
    steps_per_epoch: int | None = None  # how long the loader is, if it says so
    batch_sizes: list[int] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    missing: list[str] = field(default_factory=list)  # what could not be observed, and why
    first: Any = None  # the first batch
    unread: dict[str, str] = field(default_factory=dict)  # layers that look like normalizers, and why they cannot be read
    mixing: dict[str, tuple[float, float]] = field(default_factory=dict)  # of those: by mates and by padding, as in Layer
    wrappers: Sequence[nn.Module] = ()  # what the model was wrapped in, the outermost first
    forwards: int = 0  # of the model, the most for one batch
    closer: Closer | None = None  # of depth="full"

    def tracked(self) -> list[Layer]:
        """The layers with running statistics that saw data."""
        return [layer for layer in self.layers if layer.tracked and layer.reached]

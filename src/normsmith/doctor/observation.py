"""What was seen of a model: per layer the exact moments of its inputs and how it was used, without a verdict."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.doctor.profile import Profile
from normsmith.moments import Moments
from normsmith.surgery._source import Source

TOGETHER = 12


@dataclass(eq=False)
class Layer:
    """One normalizer, and what came by."""

    name: str
    module: nn.Module
    source: Source
    calls: int = 0
    calls_in_forward: int = 0  # the most in one forward of the model
    samples: list[int] = field(default_factory=list)  # of each call
    positions: int = 0  # per sample, of the smallest input
    profile: Profile | None = None  # four moments and a histogram per channel
    nonfinite: int = 0  # calls with NaN or infinity in the input
    before: str = ""  # the convolution or linear layer whose output it reads, if directly
    biased: bool = False  # whether that one has a bias
    apart: float = 0.0  # of a layer called several times in a forward: how far the calls' means lie apart, in deviations
    _moments: Moments | None = None
    _means: Moments | None = None
    _waiting: list[tuple[Moments, int]] = field(default_factory=list)  # calls that are not merged yet
    _in_forward: list[Moments] = field(default_factory=list)

    def take(self, batch: Moments, samples: int) -> None:
        """Add the moments of one call, (1, C); merged by the dozen, which is faster than one by one."""
        self._waiting.append((batch, samples))
        self._in_forward.append(batch)
        if len(self._waiting) >= TOGETHER:
            self._merge()

    def end_forward(self) -> list[Moments]:
        """The calls since the last time."""
        calls, self._in_forward = self._in_forward, []
        return calls

    def _merge(self) -> None:
        if not self._waiting:
            return
        every = [batch for batch, _ in self._waiting]
        means = [Moments(b.mean, torch.zeros_like(b.var), torch.full_like(b.mean, samples)) for b, samples in self._waiting]
        self._waiting = []
        self._moments = Moments.merge(*([self._moments] if self._moments else []), *every)
        self._means = Moments.merge(*([self._means] if self._means else []), *means)

    @property
    def moments(self) -> Moments | None:
        """Of all inputs, per channel, in float64."""
        self._merge()
        return self._moments

    @property
    def means(self) -> Moments | None:
        """How the means of batches scatter, each with the weight of its samples."""
        self._merge()
        return self._means

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
        """The variance of the mean of a batch of the average size, per channel."""
        assert self.means is not None
        calls = len(self.samples)
        return self.means.var.flatten() * calls / max(calls - 1, 1)

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance in float64."""
        module: Any = self.module
        return module.running_mean.detach().double(), module.running_var.detach().double()

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

    model: nn.Module
    layers: list[Layer]
    batches: int = 0
    samples: int = 0
    steps_per_epoch: int | None = None  # how long the loader is, if it says so
    batch_sizes: list[int] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    missing: list[str] = field(default_factory=list)  # what could not be observed, and why
    unread: dict[str, str] = field(default_factory=dict)  # layers that look like normalizers, and why they cannot be read

    def tracked(self) -> list[Layer]:
        """The layers with running statistics that saw data."""
        return [layer for layer in self.layers if layer.tracked and layer.moments is not None]

"""What was seen of a model: per layer the exact moments of its inputs and how it was used, without a verdict."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.doctor._describe import COUNT, MEAN, NOT_FINITE, SECOND
from normsmith.doctor.full.closer import Closer
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
    before: str = ""  # the convolution or linear layer whose output it reads, if directly
    biased: bool = False  # whether that one has a bias
    apart: float = 0.0  # of a layer called several times in a forward: how far the calls' means lie apart, in deviations
    _means: Moments | None = None
    _nonfinite: int = 0
    _base: Tensor | None = None  # the profile's facts before the calls that wait
    _waiting: list[tuple[Tensor, int]] = field(default_factory=list)  # the facts after a call, and its samples
    _in_forward: int = 0

    def take(self, x: Tensor) -> None:
        """Add the input of one call, (N, C, ...). What it alone has is worked out by the dozen, which is faster than one by one."""
        if self.profile is None:
            self.profile = Profile(x.shape[1], x.device)
        if self._base is None:
            self._base = self.profile.moments.facts.clone()
        self.profile.add(x)
        self._waiting.append((self.profile.moments.facts.clone(), x.shape[0]))
        self._in_forward += 1

    def end_forward(self) -> None:
        """Compare the calls of one forward, where there were several."""
        calls, self._in_forward = self._in_forward, 0
        self.calls_in_forward = max(self.calls_in_forward, calls)
        if calls > 1:
            each, finite = self._each(calls)
            if bool(finite.all()):
                deviation = each.var.mean(0).sqrt().clamp_min(1e-12)
                self.apart = max(self.apart, float(((each.mean.amax(0) - each.mean.amin(0)) / deviation).mean()))
        if len(self._waiting) >= TOGETHER:
            self._settle()

    def _each(self, calls: int) -> tuple[Moments, Tensor]:
        """The moments of each of the last calls, (calls, C), and which of them were finite."""
        assert self._base is not None
        facts = torch.stack([self._base.to(self._waiting[-1][0].device), *(after for after, _ in self._waiting)])[
            -calls - 1 :
        ].cpu()
        before, after = facts[:-1], facts[1:]
        count = after[..., COUNT] - before[..., COUNT]
        safe = count.clamp_min(1)
        mean = (after[..., COUNT] * after[..., MEAN] - before[..., COUNT] * before[..., MEAN]) / safe
        between = (mean - before[..., MEAN]).square() * before[..., COUNT] * count / after[..., COUNT].clamp_min(1)
        var = ((after[..., SECOND] - before[..., SECOND] - between) / safe).clamp_min(0)
        return Moments(mean, var, count), (after[..., NOT_FINITE] == before[..., NOT_FINITE]).all(1)

    def _settle(self) -> None:
        if not self._waiting:
            return
        each, finite = self._each(len(self._waiting))
        self._nonfinite += int((~finite).sum())
        samples = torch.tensor([samples for _, samples in self._waiting], dtype=torch.float64)[:, None].expand_as(each.mean)
        self._base, self._waiting = self._waiting[-1][0], []
        if bool(finite.any()):
            means = Moments(each.mean[finite], torch.zeros_like(each.mean[finite]), samples[finite]).pool(0)
            self._means = means if self._means is None else self._means.merge(means)

    @property
    def nonfinite(self) -> int:
        """Calls with NaN or infinity in the input."""
        self._settle()
        return self._nonfinite

    @property
    def moments(self) -> Moments | None:
        """Of all finite inputs, per channel, (1, C), in float64."""
        if self.profile is None or not bool(self.profile.moments.count.any()):
            return None
        found = self.profile.moments
        return Moments(*(t.cpu().unsqueeze(0) for t in (found.mean, found.var, found.count)))

    @property
    def means(self) -> Moments | None:
        """How the means of batches scatter, each with the weight of its samples."""
        self._settle()
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
    closer: Closer | None = None  # of depth="full"

    def tracked(self) -> list[Layer]:
        """The layers with running statistics that saw data."""
        return [layer for layer in self.layers if layer.tracked and layer.moments is not None]

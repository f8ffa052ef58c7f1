"""A chain of layers, each of which knows what the one before it made of its statistics: for the Kalman normalizers.

A layer keeps the state of its last forward in a `Slot`; the next one holds that slot, not the layer: so no module is in two places, a
deep copy of a model links the copies, and the replicas of DataParallel, which share slots, find their own state by thread.
"""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from normsmith.errors import InputError


class State(NamedTuple):
    """Mean and variance (or covariance) that a layer normalized with, and its affine parameters."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Slot:
    """The state of a layer's last forward, in every thread; None until a forward that somebody waits for."""

    def __init__(self) -> None:
        self.wanted = False
        self._states: dict[int, State] = {}

    def put(self, state: State) -> None:
        """Keep the state for the layers behind, if there are any."""
        if self.wanted:
            self._states[_thread()] = state

    def get(self) -> State:
        """The state, or an error if the layer did not run."""
        if _thread() not in self._states:
            raise InputError(
                "a linked Kalman layer expects the layer before it to have run: got none in this forward; run the whole model, or "
                "link it anew with ns.link(model, example)"
            )
        return self._states[_thread()]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slot":
        other = Slot()
        other.wanted = self.wanted
        return other

    def __reduce__(self) -> Any:
        return _restored, (self.wanted,)


def _restored(wanted: bool) -> Slot:
    slot = Slot()
    slot.wanted = wanted
    return slot


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


Join = Literal["add", "cat"]


def joined(slots: Sequence[Slot], join: Join) -> tuple[Tensor, Tensor]:
    """Mean and diagonal variance, or covariance, of what enters: sums of independent signals, the smaller padded with zeros, or all."""
    states = [slot.get() for slot in slots]
    if len(states) == 1:
        return states[0].mean, states[0].var
    full = states[0].var.dim() == 2 and states[0].mean.dim() == 1
    if join == "cat":
        var = torch.block_diag(*(s.var for s in states)) if full else torch.cat([s.var for s in states], -1)  # type: ignore[no-untyped-call]
        return torch.cat([s.mean for s in states], -1), var
    size = max(s.mean.shape[-1] for s in states)

    def widened(t: Tensor, square: bool) -> Tensor:
        missing = size - t.shape[-1]
        return pad(t, (0, missing, 0, missing) if square else (0, missing))

    mean, var = widened(states[0].mean, False), widened(states[0].var, full)
    for state in states[1:]:
        mean, var = mean + widened(state.mean, False), var + widened(state.var, full)
    return mean, var


def joined_size(sizes: Sequence[int], join: Join) -> int:
    """How many numbers a joined mean has."""
    return sum(sizes) if join == "cat" else max(sizes)


def averaging(outputs: int, inputs: int) -> Tensor:
    """The identity where sizes agree, else rows that average a stretch of the inputs each; every row sums to one."""
    rows = torch.zeros(outputs, inputs)
    for i in range(outputs):
        start, stop = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        rows[i, start:stop] = 1 / (stop - start)
    return rows


class Filter(nn.Module):
    """The learned part of a link: prediction from the state before, gain of the observation.

    mean' = E mean, var' = (E*E) var + R (full: E var E^T + R); then a step q from the prediction to the observation, which is exactly the
    mean and the variance of the mixture of both with weights 1 - q and q.
    """

    parameter_kinds: ClassVar[dict[str, str]] = {"transition": "transitions", "raw_noise": "floors", "raw_gain": "logits"}

    def __init__(self, outputs: int, inputs: int, gain: float, like: Tensor, *, matrix: bool = True) -> None:
        super().__init__()
        self.transition: nn.Parameter | None
        self.register_parameter("transition", nn.Parameter(averaging(outputs, inputs).to(like)) if matrix else None)
        self.raw_noise = nn.Parameter(torch.full((outputs,), 1e-2).expm1().log().to(like))  # softplus of it is 0.01
        self.raw_gain = nn.Parameter(torch.tensor(gain).logit().to(like))

    @property
    def gain(self) -> Tensor:
        """The weight of the observation, between 0 and 1."""
        return self.raw_gain.sigmoid()

    @property
    def noise(self) -> Tensor:
        """The variance that a prediction adds."""
        return softplus(self.raw_noise)

    def predict(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance behind the link; of shape (C,), or (N, G) with a row for every sample; var (C, C) is a covariance."""
        matrix = self.transition
        assert matrix is not None
        if var.dim() == 2 and mean.dim() == 1:
            return matrix @ mean, matrix @ var @ matrix.T + torch.diag(self.noise)
        return mean @ matrix.T, var @ matrix.square().T + self.noise

    def correct(self, prior: tuple[Tensor, Tensor], observed: tuple[Tensor, Tensor], max_ratio: float) -> tuple[Tensor, Tensor]:
        """The observation drawn to the prediction; the observation alone where the prediction has exploded."""
        (mean, var), (seen_mean, seen_var) = prior, observed
        gain, step = self.gain, seen_mean - mean
        full = var.dim() == 2 and mean.dim() == 1
        between = torch.outer(step, step) if full else step.square()
        found = mean + gain * step, var + gain * (seen_var - var) + gain * (1 - gain) * between
        spread, seen = (var.diagonal(), seen_var.diagonal()) if full else (var, seen_var)
        sane = (spread / seen.clamp_min(torch.finfo(seen.dtype).tiny)).detach().mean() < max_ratio
        return torch.where(sane, found[0], seen_mean), torch.where(sane, found[1], seen_var)

"""Moments made of others:

- `blend(sources, mean_weights, var_weights)`  a weighted sum of statistics, not of data: what switchable norms do;
- `by_channels((one, k), (other, rest))`  the first k channels of one, the rest of another.

They send gradients on to their sources, and wait as long as these do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from normsmith.derivatives import fit
from normsmith.moments import Moments, Pull
from normsmith.waiting import Few


def blend(sources: Sequence[Moments], mean_weights: Tensor, var_weights: Tensor, *, softmax: bool = False) -> "Blend":
    """Weighted sums of the means and of the variances; the sources broadcast, the count is that of the first.

    With `softmax` the weights are its logits.
    """
    blended, few = tuple(sources), _few(sources)
    take = partial(Blend.of_sources, blended, mean_weights, var_weights, softmax)
    if few is None:
        return take()
    given = {"blended": blended, "mean_weights": mean_weights, "var_weights": var_weights, "softmax": softmax}
    return Blend.later(take, few=few, by=blended[0].by, **given)


def by_channels(*parts: tuple[Moments, int]) -> "ByChannels":
    """For moments of shapes (N, C) and (1, C): that many channels of each, in order."""
    few, take = _few([source for source, _ in parts]), partial(ByChannels.of_parts, parts)
    return take() if few is None else ByChannels.later(take, few=few, by=parts[0][0].by, parts=parts)


def _few(sources: Sequence[Moments]) -> Few | None:
    """Their way to do without values, if all have one."""
    found = sources[0].few
    return found if all(m.few is not None for m in sources) else None


@dataclass(frozen=True, eq=False)
class Blend(Moments):
    """Weighted sums of the statistics of other moments."""

    blended: tuple[Moments, ...]
    mean_weights: Tensor
    var_weights: Tensor
    softmax: bool = False  # whether the weights are still its logits
    shares: tuple[Tensor, Tensor] | None = None  # what they came to

    @staticmethod
    def of_sources(blended: tuple[Moments, ...], mean_weights: Tensor, var_weights: Tensor, softmax: bool) -> "Blend":
        """Their values added up."""
        by, shares = blended[0].by, (_shares(mean_weights, softmax), _shares(var_weights, softmax))
        mean, var = by.weighted_sum(blended, *shares)
        return Blend(mean, var, blended[0].count, blended, mean_weights, var_weights, softmax, shares, by=by)

    def pull(self, d_mean: Tensor, d_var: Tensor, to: Pull) -> None:
        """Send the gradients of mean and variance to where they come from."""
        assert self.shares is not None
        *found, own = to.by.weigh(d_mean, d_var, self.blended, *self.shares)
        for t, share, grad in zip((self.mean_weights, self.var_weights), self.shares, found, strict=True):
            passed = (
                torch.ops.aten._softmax_backward_data(grad.to(share.dtype), share, 0, share.dtype) if self.softmax else grad
            )
            to.tensors.append((t, fit(passed, t)))
        for m, (own_mean, own_var) in zip(self.blended, own, strict=True):
            m.pull(own_mean, own_var, to)

    def sources(self) -> list[Moments | Tensor]:
        """Where `pull` will arrive."""
        return [self.mean_weights, self.var_weights, *(source for m in self.blended for source in m.sources())]


def _shares(weights: Tensor, softmax: bool) -> Tensor:
    """The weights themselves, or those of these logits: in float32 at least, as all statistics."""
    return weights.to(torch.promote_types(weights.dtype, torch.float32)).softmax(0) if softmax else weights


@dataclass(frozen=True, eq=False)
class ByChannels(Moments):
    """Some channels of each of several moments."""

    parts: tuple[tuple[Moments, int], ...]

    @staticmethod
    def of_parts(parts: tuple[tuple[Moments, int], ...]) -> "ByChannels":
        """Their values side by side."""
        sizes = [source.mean.shape[0] for source, _ in parts if source.mean.shape[0] != 1]
        samples = sizes[0] if sizes else 1  # or none at all
        pieces, start = [], 0
        for source, size in parts:
            every = (source.mean, source.var, source.counts())
            pieces.append([t.narrow(1, start, size).expand(samples, -1) for t in every])
            start += size
        mean, var, count = (torch.cat(piece, 1) for piece in zip(*pieces, strict=True))
        return ByChannels(mean, var, count, parts, by=parts[0][0].by)

    def pull(self, d_mean: Tensor, d_var: Tensor, to: Pull) -> None:
        """Send the gradients of mean and variance to where they come from."""
        start, channels = 0, self.mean.shape[1]
        for source, size in self.parts:
            margins = (start, channels - start - size)
            d_own = [pad(fit(d.narrow(1, start, size), source.mean[:, :size]), margins) for d in (d_mean, d_var)]
            source.pull(d_own[0], d_own[1], to)
            start += size

    def sources(self) -> list[Moments | Tensor]:
        """Where `pull` will arrive."""
        return [found for source, _ in self.parts for found in source.sources()]

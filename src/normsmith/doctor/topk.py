"""`TopK`: the samples with the largest scores of every channel."""

import torch
from torch import Tensor

from normsmith.doctor._describe import in_kernels
from normsmith.errors import InputError, OptionError

_EMPTY = torch.iinfo(torch.int64).min
LAST = 2**32 - 1
_TOP = 0x7FFFFFFF


def ordered(scores: Tensor) -> Tensor:
    """Integers that are ordered as these floats, both zeros being one."""
    words = (scores.contiguous() + 0.0).view(torch.int32)
    return words ^ ((words >> 31) & _TOP)


def scores_of(keys: Tensor) -> Tensor:
    """The scores in these keys, float32; of an empty place any number."""
    words = (keys >> 32).int()
    return (words ^ ((words >> 31) & _TOP)).view(torch.float32)


class TopK:
    """The k samples with the largest scores of every channel, each sample once; of equal scores the sample with the lower index.

    Scores are kept in float32, and a score that is NaN counts for nothing. Score and index are packed into one integer that is ordered
    as they are, so what is kept does not depend on the order of batches, merges or ranks.
    """

    def __init__(self, channels: int, k: int, device: torch.device | str | None = None) -> None:
        if k < 1:
            raise OptionError(f"TopK expects k of at least 1: got {k}; ask for one sample, or leave the stream out")
        self.channels, self.k = channels, k
        self.keys = torch.full((channels, k), _EMPTY, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, samples: Tensor) -> None:
        """Add scores of shape (N, C) of the samples with these indices, (N,)."""
        numbers = set(samples.tolist())  # for a batch quicker than tensors are
        in_range = not numbers or (min(numbers) >= 0 and max(numbers) <= LAST)
        if scores.shape != (len(samples), self.channels) or len(numbers) != len(samples) or not in_range:
            raise InputError(
                f"TopK expects scores of shape (N, {self.channels}) and N different indices from 0 to {LAST}: got "
                f"{tuple(scores.shape)} and {samples.tolist()}; number the samples of the data set"
            )
        if len(samples):
            self.keys = self.keys.to(scores.device)
            self._keep(scores, samples, self.keys)

    def _keep(self, scores: Tensor, samples: Tensor, kept: Tensor) -> None:
        """Insert scores into these rows of the keys."""
        scores, samples = scores.detach().float(), samples.to(scores.device, torch.int64).contiguous()
        if in_kernels(scores):
            from normsmith.kernels.cpu.describe import keep_largest  # noqa: PLC0415  (numba)

            keep_largest(scores, samples, kept)
            return
        scores = scores.T
        keys = torch.where(scores.isnan(), _EMPTY, (ordered(scores).long() << 32) | (LAST - samples))
        rows = (keys.amax(1) > kept[:, -1]).nonzero().flatten()
        if len(rows):
            kept[rows] = self._best(kept[rows], keys[rows])

    def _best(self, kept: Tensor, keys: Tensor) -> Tensor:
        """The k largest keys of different samples, each of the two being of different samples already."""
        if keys.shape[1] > 2 * self.k:
            keys = keys.topk(self.k).values
        every = torch.cat([kept, keys], 1).sort(1, descending=True).values
        index = every & LAST
        again = (index.unsqueeze(2) == index.unsqueeze(1)).tril(-1).any(2)
        return torch.where(again, _EMPTY, every).sort(1, descending=True).values[:, : self.k]

    def merge(self, other: "TopK") -> "TopK":
        """The k largest of both."""
        return self.restored([self._best(self.keys, other.keys.to(self.keys.device))])

    def state(self) -> list[Tensor]:
        """The tensors that are all there is to it."""
        return [self.keys]

    def restored(self, state: list[Tensor]) -> "TopK":
        """A stream like this one with that state."""
        stream = TopK(self.channels, self.k)
        stream.keys = state[0].clone(memory_format=torch.contiguous_format)
        return stream

    @property
    def samples(self) -> Tensor:
        """The indices of the samples, (C, k), the largest score first; -1 where there are fewer than k."""
        return torch.where(self.keys == _EMPTY, -1, LAST - (self.keys & LAST))

    @property
    def scores(self) -> Tensor:
        """Their scores, (C, k), float32; minus infinity where there are fewer than k."""
        return torch.where(self.keys == _EMPTY, -torch.inf, scores_of(self.keys))

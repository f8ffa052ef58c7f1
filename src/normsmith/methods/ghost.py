"""Ghost batch norm: a large batch is cut into small ones, each batch-normalized by itself.

Formula: y = (x - mean_kc) / sqrt(var_kc + eps) * weight_c + bias_c, mean and biased variance over a chunk k of `batch_size` consecutive
samples and their positions; the last chunk may be smaller. Evaluation is that of batch norm.

Differs from batch norm: the noise of small batches, which regularizes, whatever the size of the batch; one chunk is batch norm.
All chunks share the running buffers, which move once for each chunk, in order, as if each were a batch; `num_batches_tracked` counts
chunks. With `nonfinite="skip"` a forward with a bad chunk is skipped whole. With `accumulate=k` the chunks of k forwards make one
move, by their plain average. With `process_group` chunks stay within a rank, as they are small on purpose, and the buffers move by the
chunks of all ranks in the order of ranks: as in one process with the whole batch, if `batch_size` divides that of every rank.
Without running statistics evaluation has chunks too. Differs from the paper: it weights the chunks of a batch alike in the running
average, timm and Composer update in order.
Cost: 2 passes over x forward, 2 over x and dy backward; evaluation 1.
Fails when: chunks are so small that evaluation differs much from training, or samples are sorted.
Reference: Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of neural
networks", NeurIPS 2017.
"""

import math
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor

from normsmith.affine import Standardized
from normsmith.errors import OptionError
from normsmith.methods._batches import as_one, moved_at_once
from normsmith.methods._options import Running
from normsmith.methods._running import RunningNormalizer
from normsmith.methods.batch import CURE
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.plan import Sees
from normsmith.surroundings import is_recomputing


def mix(
    cells: Moments | None, batch: Moments | None, weight: Tensor | None, bias: Tensor | None, *, batch_size: int, eps: float
) -> Standardized:
    if cells is None:  # one chunk
        assert batch is not None
        return Standardized(batch, weight, bias, eps)
    return Standardized(cells.pool_runs(batch_size), weight, bias, eps)


class GhostNorm(RunningNormalizer):
    """Ghost batch norm over (N, C, *spatial), for any number of spatial dimensions; the card is `normsmith show ghost`."""

    def __init__(self, num_features: int, *, batch_size: int = 32, **running: Unpack[Running]) -> None:
        if type(batch_size) is not int or batch_size < 1:
            raise OptionError(
                f"GhostNorm expects batch_size, the samples of a chunk, as a positive integer: got {batch_size!r}; try 32"
            )
        super().__init__(num_features, **running)
        self.batch_size = batch_size

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        self.check_input(x)
        mask = self.check_mask(x, mask, lengths)
        single = math.prod(x.shape[2:]) == 1 and self._smallest(x.shape[0]) == 1
        if self.uses_running_stats or self.falls_back(x, 1 if single else 2, "channel and chunk", CURE):
            return self.by_running(x, mask)
        options = partial(mix, batch_size=self.batch_size, eps=self.eps)
        sees: Sees = "batch" if 0 < x.shape[0] <= self.batch_size else "cells"
        result = normalize(x, options, self.weight, self.bias, sees=sees, mask=mask, act=self.bend)
        self._update_by(result.cells, result.batch)
        return result.y

    def _smallest(self, samples: int) -> int:
        return samples % self.batch_size or min(samples, self.batch_size)

    def _update_by(self, cells: Moments | None, batch: Moments | None) -> None:
        """One move of the buffers that is as good as one for each chunk."""
        if not self.training or self.running_mean is None or is_recomputing():
            return
        chunks = cells.of_runs(self.batch_size) if cells is not None else batch
        assert chunks is not None
        if self.world is None and self._has_no_policy() and moved_at_once(self._buffers, chunks, self.momentum, final=False):
            return
        momentum = None if self.accumulate > 1 else self.momentum
        moved = as_one(Moments(chunks.mean, chunks.unbiased(), (chunks.counts() > 0).to(chunks.mean.dtype)), momentum)
        if self.world is not None:
            rows = self.world.gather(torch.cat([moved.mean, moved.var, moved.counts()], 1)).chunk(3, 1)
            moved = as_one(Moments(*rows), momentum)
        self.update(moved, final=True, batches=moved.counts() if self.accumulate == 1 else None)

    def options(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, **super().options()}

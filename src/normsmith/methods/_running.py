"""Running statistics: the one place where they are kept, updated, frozen, synchronised and loaded, for every method that has them."""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.backends import cudnn

from normsmith.affine import Standardized
from normsmith.errors import TooFewValuesError
from normsmith.kernels.choose import prefer_torch
from normsmith.methods._base import Normalizer
from normsmith.methods._batches import apart, moved_at_once, pairs, union
from normsmith.methods._options import check_running, write_out_signature
from normsmith.moments import Moments
from normsmith.normalize import normalize
from normsmith.surroundings import is_recomputing
from normsmith.world import SharedGroup, World

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def mix_running(
    cells: None, batch: None, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Standardized:
    """Evaluation: the running statistics as constants."""
    return Standardized(Moments(mean, var, 1), weight, bias, eps)


class RunningNormalizer(Normalizer):
    """A normalizer that averages its statistics over the batches of training, and uses the average in evaluation.

    - `momentum` is the weight of the newest batch, as in torch; None averages all batches equally. The running variance is unbiased.
    - `track_running_stats=False` leaves the buffers out: the batch's own statistics then serve in evaluation too.
    - `frozen=True`: the running statistics are constants, in training too; the flag is an attribute, and part of the state once changed.
    - `accumulate=k`: k micro-batches make one update, with the statistics of the one batch they are together.
    - `nonfinite="skip"`: a batch with NaN or infinite statistics leaves the buffers alone, and is counted in `num_batches_skipped`.
    - `on_single`: a statistic of a single element in training is an "error", or done with the "running" or the "batch" statistics.
    - `process_group`: the batch is that of all its ranks.

    A forward that activation checkpointing runs again in a backward does not move the buffers a second time.
    """

    _version = 2  # as torch's batch norm: 2 added num_batches_tracked
    collected: Tensor | None = None  # inside `collecting`: mean, var, count and number of the batches so far, in float64
    collects_within = False  # their variances averaged, not merged
    _born_frozen: ClassVar[bool] = False
    keeps_more: ClassVar[bool] = False  # than mean and variance
    _first_batch_sets: bool = False  # whether the first batch is taken whole, whatever the momentum

    num_features: int
    eps: float
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_skipped: Tensor | None
    pending: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        frozen: bool = False,
        accumulate: int = 1,
        nonfinite: Literal["update", "skip"] = "update",
        on_single: Literal["error", "running", "batch"] = "error",
        process_group: dist.ProcessGroup | None = None,
        act: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_running(type(self).__name__, momentum, track_running_stats, frozen, accumulate, nonfinite, on_single)
        super().__init__(num_features, eps=eps, affine=affine, act=act, device=device, dtype=dtype)
        self.momentum, self.track_running_stats, self.frozen = momentum, track_running_stats, frozen
        self.accumulate, self.nonfinite, self.on_single = accumulate, nonfinite, on_single
        self._group = SharedGroup(process_group)
        self.layer_name = type(self).__name__  # `synchronize` gives the name in the model
        tracked, skips = track_running_stats, track_running_stats and nonfinite == "skip"
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = self.statistics_shape()
        self.register_buffer("running_mean", torch.zeros(sizes, **where) if tracked else None)
        self.register_buffer("running_var", torch.ones(sizes, **where) if tracked else None)
        counters = torch.zeros(sizes[:-1], dtype=torch.long, device=device)  # one, unless there are several sets of statistics
        self.register_buffer("num_batches_tracked", counters if tracked else None)
        skipped = torch.tensor(0, dtype=torch.long, device=device)
        self.keep("num_batches_skipped", skipped if skips else None)
        # The micro-batches so far; not part of the state, as steps end whole.
        pending = torch.zeros(self.state_shape(), **where) if tracked and accumulate > 1 else None
        self.keep("pending", pending, persistent=False)

    def statistics_shape(self) -> tuple[int, ...]:
        """The shape of the running mean and variance; of several sets of them, each counts its own batches."""
        return (self.num_features,)

    def state_shape(self) -> tuple[int, ...]:
        """The shape of the statistics of some batches, as `_batches` has them."""
        return (4, *self.statistics_shape())

    def part_of(self, statistic: Tensor) -> Tensor:
        """What of a batch norm's running mean or variance this layer would keep."""
        return statistic

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        write_out_signature(cls, RunningNormalizer)

    def reset_running_stats(self) -> None:
        """Forget all batches: mean 0, variance 1."""
        for buffer in (self.running_mean, self.num_batches_tracked, self.num_batches_skipped, self.pending):
            if buffer is not None:
                buffer.zero_()
        if self.running_var is not None:
            self.running_var.fill_(1)

    def precision(self) -> torch.dtype | None:
        """The type of the running statistics, or else of the parameters."""
        running = self._buffers.get("running_mean")
        return super().precision() if running is None else running.dtype

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The ranks whose batches are one; None for this process alone."""
        return self._group.group

    @process_group.setter
    def process_group(self, group: dist.ProcessGroup | None) -> None:
        self._group = SharedGroup(group)

    @property
    def takes_empty(self) -> bool:  # type: ignore[override]
        """Whether this rank may have no data while others have."""
        return self.process_group is not None or self.frozen

    @property
    def uses_running_stats(self) -> bool:
        """Whether this forward normalizes by the running statistics."""
        return (self.frozen or not self.training) and self.running_mean is not None

    @property
    def world(self) -> World | None:
        """The ranks that share this forward's statistics."""
        if self.process_group is None or not (self.training or self.running_mean is None):
            return None
        return World(self.process_group, self.layer_name)

    def falls_back(self, x: Tensor, elements: int, statistic: str, cure: str) -> bool:
        """Whether a statistic of that many elements is replaced by the running one; raises if it is one and that is an error."""
        if elements != 1 or not (self.training or self.running_mean is None) or self.process_group is not None:
            return False
        if self.on_single == "error" or (self.on_single == "running" and self.running_mean is None):
            raise TooFewValuesError(
                f"{type(self).__name__} expects more than 1 value per {statistic} when training: got input of shape "
                f'{tuple(x.shape)}; {cure}, or say on_single="running" to use the running statistics'
            )
        return self.on_single == "running"

    def by_running(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` normalized by the running statistics."""
        (mean, var), weight, bias = self.constants(), self.weight, self.bias
        if mask is None and prefer_torch("batch_eval", x, activated=self.bend is not None):
            return self.activated(torch.batch_norm(x, weight, bias, mean, var, False, 0.0, self.eps, cudnn.enabled))
        fixed = partial(mix_running, eps=self.eps)
        return normalize(x, fixed, mean, var, weight, bias, sees="nothing", mask=mask, act=self.bend).y

    def constants(self) -> tuple[Tensor, Tensor]:
        """The running mean and variance for one forward: copies where a backward, before which others may write to them, needs them."""
        mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        assert mean is not None
        assert var is not None
        if not torch.compiler.is_compiling():
            return (mean.clone(), var.clone()) if torch.is_grad_enabled() else (mean, var)
        if not self.training or self.frozen:
            return mean, var
        # AOTAutograd would read the buffers again in the backward, when they have moved, but for an operation it never repeats.
        return mean.unsqueeze(0).cumsum(0).squeeze(0), var.unsqueeze(0).cumsum(0).squeeze(0)

    def update(self, batch: Moments, *, final: bool = False, batches: Tensor | None = None) -> None:
        """Take one batch's moments, cut from the graph, into the running ones; only in training.

        With `final` they are not to be pooled: var is what is kept, and micro-batches are averaged. They may stand for several `batches`,
        a number per channel: then they are their average weighted as the running ones would be, `_batches.as_one`.
        """
        running_mean = self._buffers["running_mean"]  # past nn.Module.__getattr__, which costs as much as a small operation
        if not self.training or self.frozen or running_mean is None or is_recomputing():
            return
        if batches is None and self._has_no_policy() and moved_at_once(self._buffers, batch, self.momentum, final=final):
            return
        with torch.no_grad():
            dtype = (running_mean if self.collected is None else self.collected).dtype
            mean, var, count = _like(batch.mean, running_mean, dtype), self.spread_of(batch, running_mean, dtype), batch.count
            if isinstance(count, Tensor):
                count = count.expand_as(batch.mean).reshape_as(running_mean)
            take: Tensor | None = None if isinstance(count, int) else count > 0
            if self.num_batches_skipped is not None:
                finite = (mean + var).isfinite().all()
                self.num_batches_skipped.add_(~finite)
                take = finite if take is None else take & finite
            if self.collected is not None:
                if self.collects_within and not final:
                    var = self.final(Moments(mean, var, count))
                self.collects_within |= final
                self.collected.copy_(union(self.collected, mean, var, count, take, self.collects_within))
                return
            if self.pending is not None:
                mean, var, count, take = self._accumulated(self.pending, mean, var, count, take, final)
            new = var if final else self.final(Moments(mean, var, count))
            self._move(mean, new, take, None if batches is None else _like(batches, mean, mean.dtype))

    def _has_no_policy(self) -> bool:
        """Whether a batch moves mean and variance as in torch, and nothing else."""
        policies = self.num_batches_skipped is not None or self.collected is not None or self.pending is not None
        return not (policies or self.keeps_more or self._first_batch_sets)

    def spread_of(self, batch: Moments, sized: Tensor, dtype: torch.dtype) -> Tensor:
        """What is merged beside the mean: the variance, as a row of its own where there are more rows behind it."""
        return _like(batch.var, sized, dtype)

    def final(self, batch: Moments) -> Tensor:
        """What running statistics are the average of: the unbiased variance of batches."""
        return batch.unbiased()

    def kept(self, mean: Tensor, final_var: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The buffers, each with what moves it."""
        return pairs(self, mean, final_var)

    def settled(self, counts: Tensor) -> None:
        """Bring along what else is kept: mean and variance are now those of batches that counted so much for each of them."""

    def _accumulated(
        self, pending: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, take: Tensor | None, final: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The micro-batches so far with one more, and where there are enough of them to be taken."""
        state = union(pending, mean, var, count, take, final)
        merged, spread, total, batches = apart(state)
        pending.copy_(torch.where(whole := batches >= self.accumulate, 0, state))
        return merged, spread, total, whole & (total > 0)

    def _move(self, mean: Tensor, final_var: Tensor, take: Tensor | None, batches: Tensor | None) -> None:
        """One step of the average, or so many, where `take` is true."""
        tracked = self._buffers["num_batches_tracked"]
        assert tracked is not None
        if batches is not None and take is not None:
            tracked.add_(torch.where(take, batches, 0).max().to(torch.long))
        else:
            tracked.add_(1 if take is None else take.any(-1))
        step = self._step(tracked, mean.dtype, batches)
        for running, found in self.kept(mean, final_var):
            running.lerp_((found if take is None else torch.where(take, found, running)).to(running.dtype), step)

    def _step(self, tracked: Tensor, dtype: torch.dtype, batches: Tensor | None = None) -> float | Tensor:
        """The weight of this batch, or of so many, which have been counted already."""
        if self.momentum is None:  # divided on the device: reading the counter would stall a GPU and break a compiled graph
            precise = torch.promote_types(dtype, torch.float32)  # integers alone would be divided in float32
            return ((1 if batches is None else batches) / tracked.clamp_min(1).unsqueeze(-1).to(precise)).to(dtype)
        if batches is not None:
            return 1 - (1 - self.momentum) ** batches
        if self._first_batch_sets:
            return torch.where(tracked <= 1, 1.0, self.momentum).to(dtype).unsqueeze(-1)
        return self.momentum

    def options(self) -> dict[str, Any]:
        """The constructor's options: the four of torch, and policies that are not at their defaults."""
        default = {"frozen": self._born_frozen, "accumulate": 1, "nonfinite": "update", "on_single": "error"}
        return {
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
            **self.own_activation(),
            **{key: getattr(self, key) for key, value in default.items() if getattr(self, key) != value},
            **({} if self.process_group is None else {"process_group": self.process_group}),
        }

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.frozen != self._born_frozen:  # not otherwise: the state is then that of torch's layer
            destination[prefix + "frozen"] = torch.tensor(self.frozen)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        key = prefix + "num_batches_tracked"
        if (local_metadata.get("version") or 0) < 2 and self.num_batches_tracked is not None and key not in state_dict:
            state_dict[key] = torch.zeros_like(self.num_batches_tracked)  # a checkpoint from before the counter
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if prefix + "frozen" in state_dict:
            self.frozen = bool(state_dict[prefix + "frozen"])
            if prefix + "frozen" in rest[2]:  # the unexpected keys
                rest[2].remove(prefix + "frozen")


def _like(t: Tensor, sized: Tensor, dtype: torch.dtype) -> Tensor:
    t = t if t.shape == sized.shape else t.reshape_as(sized)
    return t if t.dtype == dtype else t.to(dtype)

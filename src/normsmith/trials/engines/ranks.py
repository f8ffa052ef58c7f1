"""The ranks of torchrun: all train one trial together, each a part of every batch, with synchronised statistics.

`torchrun --nproc-per-node 2 -m normsmith compare recipe.toml`. The first rank leads: it alone reads and writes the folder of results, and
tells the others which trial comes next.

Losses are those of the whole batch: a rank's loss is the sum over its samples by the number of all samples, so that gradients are added,
not averaged. They are added up here, once a step, all in one tensor, and not by DistributedDataParallel: a step then costs one call to the
other ranks however many parts its batch has, nothing need be known of which parameters take part in it, and the model stays itself, with
the names that checkpoints and everything else that looks into it expect.
"""

import datetime
import itertools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normsmith.errors import ModelError, NormsmithError, ResultsError, SynchronizationError
from normsmith.surgery.synchronize import synchronize
from normsmith.trials.engines import Errand
from normsmith.trials.engines.common import BUSY
from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial
from normsmith.trials.share import Share
from normsmith.trials.trial import attempt, run_trial
from normsmith.world import World

_DAY = datetime.timedelta(days=1)  # the first rank may wait for a trial that another sweep is at
_TOGETHER = datetime.timedelta(minutes=5)  # in which all come to the end of a trial, or to an error in it, if any does


def launched() -> bool:
    """Whether this process is one of several of torchrun."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process speaks for all: it is alone, or the first rank."""
    return not launched() or os.environ["RANK"] == "0"


class Ranks(Share):
    """The part of a rank."""

    def __init__(self) -> None:
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_DAY)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        # Groups of their own: what a trial that failed has left undone in another does not get in the way of orders.
        self._orders = dist.new_group(backend="gloo", timeout=_DAY)
        self._ends = dist.new_group(backend="gloo", timeout=_TOGETHER)
        self._groups: dict[str, dist.ProcessGroup] = {}
        self._world: World | None = None

    def order(self, what: Any) -> Any:
        """What the first rank orders."""
        box = [what]
        try:
            dist.broadcast_object_list(box, group=self._orders)
        except RuntimeError as error:
            raise SynchronizationError("compare expects all ranks to be there: one has ended; look for its message") from error
        return box[0]

    def begin(self, trial: Trial, root: str | None) -> None:
        """Have the others begin too, if this is the first rank; then meet for the work."""
        if self.rank == 0:
            self.order({"trial": trial.to_dict(), "root": root})
        kind = torch.device(trial.option("device")).type
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if kind not in self._groups:
            self._groups[kind] = dist.new_group(backend="nccl" if kind == "cuda" else "gloo")
        self._world = World(self._groups[kind], "compare")

    def end(self, error: str | None) -> str | None:
        """The first error of any rank. One that failed while the others did not is the end of all: they wait for it in vain."""
        errors: list[str | None] = [None] * self.ranks
        try:
            dist.all_gather_object(errors, error, group=self._ends)
        except RuntimeError as failure:
            got = (
                f"rank {self.rank} ended with {error}, the others did not"
                if error
                else "one that did not; look for its message"
            )
            raise SynchronizationError(f"compare expects all ranks to come to the end of a trial: got {got}") from failure
        return next((each for each in errors if each), None)

    def join(self, model: nn.Module) -> None:
        """The weights of the first rank for all, and statistics over all."""
        left = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        if left:
            raise ModelError(
                f"compare with several ranks expects batch norms that they can share: got torch's own in {', '.join(left)}; "
                "give that part a method too, such as 'batch'"
            )
        synchronize(model, self._shared.group)
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            dist.broadcast(tensor.detach(), 0, group=self._shared.group)

    @property
    def _shared(self) -> World:
        assert self._world is not None, "a trial has begun"
        return self._world

    def agree(self, value: Any) -> Any:
        """What the first rank has."""
        return self.order(value)

    def seed(self, seed: int, epoch: int) -> None:
        """Numbers that depend on the seed, the epoch and the rank, so that nothing of them need be kept."""
        torch.manual_seed(hash((seed, epoch, self.rank)))

    def part(self, batch: Tensor) -> Tensor:
        """A stretch of the batch; the first ranks have one more where it cannot be divided."""
        return batch.tensor_split(self.ranks)[self.rank]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """One call for all of them."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for grad, total in zip(grads, self._shared.add(*grads), strict=True):
            grad.copy_(total)

    def sum(self, values: Tensor) -> Tensor:
        """Added up over the ranks."""
        return self._shared.add(values)[0]


class RanksEngine:
    """One trial after the other, each by all ranks."""

    def __init__(self) -> None:
        self._share = Ranks()
        self.ranks, self.leads = self._share.ranks, self._share.rank == 0

    def run(self, errand: Errand) -> None:
        """Run all trials in order; for the first rank."""
        for trial in errand.trials:
            while run_trial(trial, errand.folder, errand.root, errand.tell, errand.log, self._share) == "busy":
                time.sleep(BUSY)

    def among_ranks(self, sweep: Callable[[], list[Trial]]) -> list[Trial]:
        """On the first rank do this, which uses the engine, on the others what it orders; on all its result."""
        if not self.leads:
            return self._follow()
        try:
            trials = sweep()
        except (ResultsError, SynchronizationError):
            raise  # the others are in the middle of a trial; torchrun ends them
        except NormsmithError:
            self._share.order(None)
            raise
        self._share.order([trial.to_dict() for trial in trials])
        return trials

    def _follow(self) -> list[Trial]:
        while isinstance(order := self._share.order(None), dict):
            trial = Trial.from_dict(order["trial"])
            self._share.begin(trial, order["root"])
            attempt(trial, trial.identity, _Nowhere("."), order["root"], self._share)
        if order is None:
            raise SynchronizationError("compare expects the first rank to come to its end: it failed; look for its message")
        return [Trial.from_dict(trial) for trial in order]


class _Nowhere(Folder):
    """The folder of ranks that do not lead."""

    def checkpoint(self, identity: str) -> dict[str, Any] | None:
        """The first rank has it."""
        return None

    def save_checkpoint(self, identity: str, state: dict[str, Any]) -> None:
        """The first rank does."""

    def save_weights(self, identity: str, state: dict[str, Any]) -> None:
        """The first rank does."""

"""Ranks that meet once at the end of a pass, whatever became of each: what one has failed at, none keeps waiting for."""

import torch
import torch.distributed as dist
from torch import Tensor

from normsmith.errors import SynchronizationError
from normsmith.methods._batches import apart, union
from normsmith.surgery._statistics import Watch
from normsmith.world import World


class Ranks:
    """The ranks of a process group, of the default one if there is one, or this process alone."""

    def __init__(self, group: dist.ProcessGroup | None, verb: str) -> None:
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.verb, self.world = verb, None if group is None else World(group, verb)

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world is not None and self.world.size > 1

    def gather(self, row: Tensor, failure: Exception | None) -> Tensor:
        """The rows of all ranks, in float64; where one has failed, every rank raises, the others an error that names it."""
        flag = torch.tensor([float(failure is not None)], dtype=torch.float64, device=row.device)
        packed = torch.cat([flag, row]).unsqueeze(0)
        every = packed if self.world is None else self.world.gather(packed)
        if failure is not None:
            raise failure
        failed = every[:, 0].nonzero().flatten().tolist()
        if failed:
            raise SynchronizationError(
                f"{self.verb} expects all ranks to come to the end: got an error on rank {failed[0]}; look for its message there, "
                "the statistics are as they were"
            )
        return every[:, 1:]

    def merge(self, watches: list[Watch], batches: int, failure: Exception | None) -> int:
        """Give every watch what all ranks have seen; the number of batches of all."""
        states = [watch.state for watch in watches]
        facts = [[float(watch.within), float(watch.samples), float(watch.calls)] for watch in watches]
        head = torch.tensor([batches, *(number for fact in facts for number in fact)], dtype=torch.float64)
        device = states[0].device
        every = self.gather(torch.cat([head.to(device), *(state.flatten().to(device) for state in states)]), failure)
        numbers, rest = every[:, : len(head)], torch.split(every[:, len(head) :], [state.numel() for state in states], 1)
        for watch, state, fact, rows in zip(watches, states, torch.split(numbers[:, 1:], 3, 1), rest, strict=True):
            within = bool(fact[:, 0].any())
            merged = torch.zeros_like(state)
            for row in rows.to(state.device):
                mean, var, count, seen = apart(row.view_as(state))
                number = merged[3] + seen
                merged = union(merged, mean, var, count, None, within)
                merged[3] = number
            watch.replace(merged, within)
            watch.samples, watch.calls = int(fact[:, 1].sum()), int(fact[:, 2].sum())
        return int(numbers[:, 0].sum())

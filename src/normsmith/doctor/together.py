"""What all ranks have seen, brought together at the end of a pass: the same on each."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normsmith.doctor.calls import Calls
from normsmith.doctor.cells import Cells
from normsmith.doctor.gathering import gather
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.pictures import NONE, Pictures
from normsmith.doctor.profile import Profile
from normsmith.doctor.samples import Outlying
from normsmith.errors import SynchronizationError


class Company:
    """The ranks of a process group, of the default one if there is one, or this process alone."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)

    def share(self, mine: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.size == 1:
            return [mine]
        every: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(every, mine, group=self.group)
        except RuntimeError as error:
            raise SynchronizationError(
                f"examine expected all {self.size} ranks of its process group to come to the end: rank {self.rank} waited in vain, "
                f"{str(error).strip().splitlines()[0]}; every rank must call it, or pass a process_group of those that do"
            ) from error
        return every


def join(seen: Observation, company: Company) -> None:
    """Give this observation what all ranks have seen."""
    if company.size == 1:
        return
    every = company.share((_run(seen), [_facts(layer) for layer in seen.layers]))
    runs, facts = zip(*every, strict=True)
    for key in ("batches", "samples"):
        setattr(seen, key, sum(run[key] for run in runs))
    seen.batch_sizes = [size for run in runs for size in run["batch_sizes"]]
    seen.forwards = max(run["forwards"] for run in runs)
    seen.missing = [f"rank {rank}: {what}" for rank, run in enumerate(runs) for what in run["missing"]]
    seen.mixing = {name: (float(a), float(b)) for run in runs for name, (a, b) in run["mixing"].items()}
    for layer, rows in zip(seen.layers, zip(*facts, strict=True), strict=True):
        _fold(layer, rows)
    readable = [layer for layer in seen.layers if layer.samples]
    device = next((t.device for t in (*seen.model.parameters(), *seen.model.buffers())), torch.device("cpu"))
    streams = []
    for layer in readable:
        channels = layer.source.num_features
        assert isinstance(channels, int)
        streams += [
            layer.profile or Profile(channels, device),
            layer.outlying or Outlying(channels, device),
            layer.cells or Cells(channels, device),
        ]
    merged: list[Any] = gather(streams, company.group)
    for at, layer in enumerate(readable):
        layer.profile, layer.outlying, layer.cells = merged[3 * at : 3 * at + 3]


def _run(seen: Observation) -> dict[str, Any]:
    keys = ("batches", "samples", "batch_sizes", "forwards", "missing", "mixing")
    return {key: getattr(seen, key) for key in keys}


def _facts(layer: Layer) -> dict[str, Any]:
    """What is not a stream."""
    keys = ("calls", "samples", "positions", "seconds", "before", "biased", "flips", "flip", "by_mates", "by_padding")
    return {key: getattr(layer, key) for key in (*keys, "consistency")} | {"each": Calls.together(layer.each)}


def _fold(layer: Layer, rows: tuple[dict[str, Any], ...]) -> None:
    for key in ("calls", "seconds", "flips"):
        setattr(layer, key, sum(row[key] for row in rows))
    for key in ("biased", "by_mates", "by_padding"):
        setattr(layer, key, max(row[key] for row in rows))
    for key in ("before", "flip", "consistency"):
        setattr(layer, key, next((row[key] for row in rows if row[key]), rows[0][key]))
    layer.samples = [size for row in rows for size in row["samples"]]
    layer.positions = min((row["positions"] for row in rows if row["positions"]), default=0)
    layer.each = Calls.together(*(row["each"] for row in rows))


def labels_of_all(pictures: Pictures, company: Company, least: int) -> Tensor:
    """The label of each sample by its number, at least so many, NONE where there is none."""
    every = company.share(pictures.labels)
    labels = torch.full((max(company.size * max(map(len, every)), least),), NONE)
    for rank, own in enumerate(every):
        labels[rank : rank + company.size * len(own) : company.size] = own
    return labels


def thumbnails_of_all(pictures: Pictures, company: Company, wanted: set[int]) -> dict[int, Tensor]:
    """Pictures of these samples, where their ranks still have them."""
    mine = {index: picture.clone() for index, picture in pictures.thumbnails.items() if index in wanted}
    return {index: picture for theirs in company.share(mine) for index, picture in theirs.items()}

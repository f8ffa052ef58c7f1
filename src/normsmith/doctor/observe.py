"""Running a model over data with hooks that take the moments of what its normalizers read; nothing of the model is changed."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normsmith.analysis._photograph import Photograph, Randomness
from normsmith.doctor.conclude import conclude
from normsmith.doctor.hooks import Passing, watching
from normsmith.doctor.mixing import look_for_mixing
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.pictures import Pictures, size_of
from normsmith.doctor.samples import tops
from normsmith.doctor.together import Company
from normsmith.errors import InputError, ModelError
from normsmith.surgery._batches import batches_of, check_loader
from normsmith.surgery._choice import candidates
from normsmith.surgery._models import Forward, evaluating, expect_module, run_batch
from normsmith.surgery._statistics import Kept, norms_of


def observe(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    process_group: dist.ProcessGroup | None = None,
    keep: Callable[[Any], None] | None = None,
) -> Observation:
    """One pass over the data, in evaluation; a model or loader that raises ends it early, with what was seen until then.

    Under torch.distributed the observation is that of all ranks, which meet once, at the end. `keep` is given every batch that the model
    took.
    """
    expect_module(model, "examine")
    check_loader(loader, batches, "examine")
    model, wrappers = unwrapped(model)
    found = candidates(model)
    seen = Observation(model, [Layer(c.name, c.layer, c.source) for c in found if c.source is not None], optimizer=optimizer)
    seen.unread = {c.name: c.reason for c in found if c.source is None}
    seen.wrappers = wrappers
    if not found:
        raise ModelError(f"examine expects a model with normalization layers: got {norms_of(model)}")
    with contextlib.suppress(TypeError):
        seen.steps_per_epoch = len(loader)  # type: ignore[arg-type]
    company = Company(process_group)
    job = _Job(seen, forward, Pictures(company.rank, company.size), keep)
    kept, photograph, randomness = Kept(model.modules(), model.parameters()), Photograph(model), Randomness(model)
    held = [*model.parameters(), *model.buffers()]
    versions = [t._version for t in held]
    try:
        with evaluating(model):
            job.run(loader, batches)
            if seen.first is not None:
                look_for_mixing(seen, seen.first, forward)
    finally:
        if [t._version for t in held] != versions:
            kept.restore()
        photograph.restore()
        randomness.put_back()
    conclude(seen, job.pictures, company)
    if not seen.batches and not seen.missing:
        raise InputError(
            "examine expects a loader with at least one batch: got an empty one; an iterator is empty once it was gone through"
        )
    return seen


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """A model without DistributedDataParallel, DataParallel and torch.compile around it, and these, the outermost first.

    Ranks may have unequal numbers of batches, and DistributedDataParallel would wait, and overwrite buffers, in each forward.
    """
    around: list[nn.Module] = []
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inside: Any = model.module
        elif type(model).__name__ == "OptimizedModule" and hasattr(model, "_orig_mod"):
            inside = model._orig_mod
        else:
            return model, tuple(around)
        around.append(model)
        model = inside


@dataclass(eq=False)
class _Job:
    """One pass over the batches of this rank."""

    seen: Observation
    forward: Forward | None
    pictures: Pictures
    keep: Callable[[Any], None] | None
    passing: Passing = field(default_factory=Passing)

    def run(self, loader: Iterable[Any], batches: int | None) -> None:
        """All batches, or as many as there are before something raises."""
        source = batches_of(loader, batches, "examining")
        with watching(self.seen, self.passing):
            while True:
                try:
                    batch = next(source)
                except StopIteration:
                    return
                except Exception as error:  # noqa: BLE001  (a loader of anyone's)
                    self._give_up("loader", error)
                    return
                try:
                    self._take(batch)
                except Exception as error:  # noqa: BLE001  (a model of anyone's)
                    self._give_up("model", error)
                    return

    def _take(self, batch: Any) -> None:
        size = size_of(batch)
        self.passing.begin(self.pictures.numbers(size))
        seen = self.seen
        try:
            run_batch(seen.model, batch, self.forward)
        finally:
            for layer in seen.layers:
                layer.end_forward()
        seen.first = batch if seen.first is None else seen.first
        seen.batches += 1
        seen.samples += size
        seen.batch_sizes.append(size)
        seen.forwards = max(seen.forwards, self.passing.forwards)
        self.pictures.add(batch, size, self._furthest)
        if self.keep is not None:
            self.keep(batch)

    def _furthest(self) -> set[int]:
        """The samples that have outliers in some layer so far."""
        streams = [
            (layer.outlying, layer.profile.moments)
            for layer in self.seen.layers
            if layer.profile is not None and layer.outlying is not None
        ]
        return {index for top in tops(streams) for index, _, _ in top}

    def _give_up(self, who: str, error: Exception) -> None:
        what = str(error).partition("\n")[0]
        self.seen.missing.append(f"batches from {self.seen.batches} on: the {who} raised {type(error).__name__}: {what}")

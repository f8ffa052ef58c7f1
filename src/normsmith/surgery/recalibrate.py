"""`recalibrate`: the running statistics of a model become the exact ones of a data set."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from rich.table import Table
from torch import Tensor, nn

from normsmith.errors import InputError, ModelError
from normsmith.methods._base import one_of
from normsmith.methods.kalman import KalmanNorm
from normsmith.surgery._batches import batches_of, check_loader
from normsmith.surgery._choice import Where
from normsmith.surgery._console import as_text
from normsmith.surgery._models import Forward, evaluating, run_batch
from normsmith.surgery._ranks import Ranks
from normsmith.surgery._statistics import (
    Keeper,
    Kept,
    Variance,
    Watch,
    check_finite,
    finite_so_far,
    is_frozen,
    keepers,
    watching,
)


@dataclass(frozen=True, eq=False)
class LayerShift:
    """How far the statistics of one layer have moved, in units of the old deviation sqrt(var + eps), a number for each channel."""

    name: str
    method: str  # the name of its class
    frozen: bool  # left alone
    calls: int  # of its forward, by all ranks; none leave it alone too
    samples: int
    mean: Tensor  # (new mean - old mean) / old deviation
    std: Tensor  # (new deviation - old deviation) / old deviation


@dataclass(frozen=True, eq=False)
class Recalibration:
    """What `recalibrate` did; printed, it is a table."""

    layers: tuple[LayerShift, ...]
    batches: int  # of all ranks

    def __str__(self) -> str:
        table = Table(
            title=f"statistics of {self.batches} batches",
            caption="how far mean and deviation moved, in old deviations: root mean square over channels, and the largest",
        )
        for index, heading in enumerate(("layer", "method", "samples", "mean", "largest", "std", "largest", "")):
            table.add_column(heading, justify="left" if index in {0, 1, 7} else "right")
        for shift in self.layers:
            why = "frozen" if shift.frozen else "" if shift.calls else "not reached"
            numbers = [""] * 4 if why else [f"{n:.3g}" for t in (shift.mean, shift.std) for n in _sizes(t)]
            table.add_row(shift.name or "(the model)", shift.method, str(shift.samples), *numbers, why)
        return as_text(table)


def _sizes(moved: Tensor) -> tuple[float, float]:
    return float(moved.square().mean().sqrt()), float(moved.abs().max())


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    layerwise: bool = False,
    variance: Variance = "total",
    where: Where | None = None,
    forward: Forward | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Recalibration:
    """Give every layer with running statistics, ours or torch's, the exact mean and variance of its inputs over `loader`, in place.

    A batch is a tensor, a mapping of arguments, or a sequence whose first item is the input; or it goes to `forward(model, batch)`.
    Batches are merged by the law of total variance, weighted by their counts, in float64; `variance="within"` averages their variances.

    One pass serves all layers: each normalizes by the batch, as in training. With `layerwise=True` layer after layer is measured, in the
    order of the forward, behind layers that are in evaluation with their new statistics: exact for evaluation, for a pass per layer.
    Everything else, say dropout, is in evaluation. Frozen layers, those that `where(module, name)` leaves out, and those that no batch
    reaches keep what they have. Modes and random state are put back, and after an error the statistics too.

    Under torch.distributed the batches are those of all ranks (of `process_group`), which need not have equally many, or any: ranks meet
    once, at the end (`layerwise`: at the end of each layer). Synchronised layers normalize by the batch of their own rank meanwhile.
    """
    found = keepers(model, where, "recalibrate")
    one_of("recalibrate", "variance", variance, ("total", "within"))
    check_loader(loader, batches, "recalibrate", again="layerwise=True" if layerwise else "")
    live = {layer: name for layer, name in found.items() if not is_frozen(layer)}
    if not live:
        raise ModelError("recalibrate expects a layer that is not frozen: got frozen ones only; call ns.unfreeze(model) first")
    job = _Job(model, loader, batches, forward, variance, Ranks(process_group, "recalibrate"))
    kept, old = Kept(live), statistics(found)
    try:
        with evaluating(model):
            watches, seen = job.layer_by_layer(live) if layerwise else job.at_once(live)
        if seen == 0:
            raise InputError(
                "recalibrate expects a loader with at least one batch: got an empty one; an iterator is empty once it was gone through"
            )
        if not any(watch.calls for watch in watches):
            raise InputError(f"recalibrate expects batches that reach a layer with statistics: got {seen} that reach none")
    except BaseException:
        kept.restore()
        raise
    return Recalibration(shifts(found, old, {watch.layer: watch for watch in watches}), seen)


def statistics(layers: Iterable[Keeper]) -> dict[Keeper, tuple[Tensor, Tensor]]:
    """Running mean and variance of each layer, in float64, as they are."""
    found = {}
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        found[layer] = layer.running_mean.double().clone(), layer.running_var.double().clone()
    return found


def shifts(
    layers: dict[Keeper, str], old: dict[Keeper, tuple[Tensor, Tensor]], counts: Mapping[Keeper, Watch | LayerShift]
) -> tuple[LayerShift, ...]:
    """How far each layer has moved from its old statistics."""
    rows = []
    for layer, (new_mean, new_var) in statistics(layers).items():
        mean, deviation = old[layer][0], (old[layer][1] + layer.eps).sqrt()
        moved = (new_mean - mean) / deviation, (new_var + layer.eps).sqrt() / deviation - 1
        seen = counts.get(layer)
        calls, samples = (seen.calls, seen.samples) if seen else (0, 0)
        rows.append(
            LayerShift(layers[layer], type(layer).__name__, is_frozen(layer), calls, samples, *(t.cpu() for t in moved))
        )
    return tuple(rows)


class _Reached(BaseException):
    """Ends a forward behind the layer that is measured; no model catches it by accident."""


def _stop(*_: object) -> None:
    raise _Reached


@dataclass
class _Job:
    model: nn.Module
    loader: Iterable[Any]
    batches: int | None
    forward: Forward | None
    variance: Variance
    ranks: Ranks

    def at_once(self, layers: dict[Keeper, str]) -> tuple[list[Watch], int]:
        """All layers by one pass, each as in training."""
        with watching(layers, variance=self.variance) as watches:
            return watches, self._pass(watches, "recalibrating")

    def layer_by_layer(self, layers: dict[Keeper, str]) -> tuple[list[Watch], int]:
        """Each behind those before it, which are in evaluation; a layer that was reached once in every forward ends it."""
        linked = [name for layer, name in layers.items() if isinstance(layer, KalmanNorm) and layer.filter is not None]
        if linked:
            raise ModelError(
                f"recalibrate with layerwise=True expects layers that need no other in training: got {linked[0]!r}, which is linked to "
                "the layer before it; leave layerwise=True out"
            )
        found, seen = [], 0
        for layer, once in self._order(list(layers)).items():
            stop = layer.register_forward_hook(_stop) if once else None
            try:
                with watching({layer: layers[layer]}, variance=self.variance, alone=True) as watches:
                    seen = self._pass(watches, f"recalibrating {layers[layer]}")
            finally:
                if stop is not None:
                    stop.remove()
            found += watches
        return found, seen

    def _order(self, layers: Sequence[Keeper]) -> dict[Keeper, bool]:
        """The layers in the order in which forwards reach them, and whether none reaches it twice; agreed by all ranks."""
        first, calls, most = ([value] * len(layers) for value in (math.inf, 0, 0))
        clock = iter(range(2**62))

        def note(index: int) -> None:
            first[index] = min(first[index], next(clock))
            calls[index] += 1
            most[index] = max(most[index], calls[index])

        hooks = [layer.register_forward_pre_hook(lambda *_, i=i: note(i)) for i, layer in enumerate(layers)]
        failure = None
        try:
            for batch in batches_of(self.loader, self.batches, "looking for the order of layers"):
                calls[:] = [0] * len(layers)
                run_batch(self.model, batch, self.forward)
        except Exception as error:  # noqa: BLE001  (the other ranks are to know)
            failure = error
        finally:
            for hook in hooks:
                hook.remove()
        device = next(b.device for b in layers[0].buffers())
        earliest = self.ranks.gather(torch.tensor(first, dtype=torch.float64, device=device), failure).amin(0).tolist()
        return {layers[i]: most[i] <= 1 for i in sorted(range(len(layers)), key=earliest.__getitem__)}

    def _pass(self, watches: list[Watch], what: str) -> int:
        """All batches once, those of all ranks; how many they were."""
        failure, count, finite = None, 0, []
        try:
            for batch in batches_of(self.loader, self.batches, what):
                with contextlib.suppress(_Reached):
                    run_batch(self.model, batch, self.forward)
                count += 1
                finite.append(finite_so_far(watches))
            check_finite(watches, finite, "recalibrate")
        except Exception as error:  # noqa: BLE001  (the other ranks are to know)
            failure = error
        return self.ranks.merge(watches, count, failure)

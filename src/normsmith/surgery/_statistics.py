"""The running statistics of a model: which layers keep them, what those layers are given in some forwards, and the way back."""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from normsmith.errors import InputError, ModelError, TooFewValuesError
from normsmith.measure import measure
from normsmith.methods._averages import collecting, settle
from normsmith.methods._batches import union
from normsmith.methods._running import RunningNormalizer
from normsmith.moments import Moments
from normsmith.surgery._choice import Where
from normsmith.surgery._models import refuse_wrapped
from normsmith.surgery._source import is_norm

Keeper = RunningNormalizer | _NormBase
Variance = Literal["total", "within"]


def keepers(model: nn.Module, where: Where | None, verb: str) -> dict[Keeper, str]:
    """Every layer with running statistics, ours or torch's, with its name; an error that says what there is where there are none."""
    refuse_wrapped(model, verb)
    found: dict[Keeper, str] = {}
    for name, module in model.named_modules():
        if not keeps(module) or (where is not None and not where(module, name)):
            continue
        if is_lazy(module._buffers["running_mean"]):  # type: ignore[arg-type]
            raise ModelError(
                f"{verb} expects a model whose layers know their sizes: got {name!r}, which is lazy; run the model once"
            )
        found[module] = name
    if not found:
        selected = " that where() selects" if where is not None and any(keeps(m) for m in model.modules()) else ""
        raise ModelError(f"{verb} expects a model with running statistics{selected}: got {norms_of(model)}")
    return found


def keeps(module: nn.Module) -> TypeGuard[Keeper]:
    """Whether a module has running statistics."""
    mean = module._buffers.get("running_mean") if isinstance(module, RunningNormalizer | _NormBase) else None
    return mean is not None and (is_lazy(mean) or mean.numel() > 0)


def norms_of(model: nn.Module) -> str:
    """The normalizers of a model in words."""
    kinds = Counter(type(m).__name__ + (" with running statistics" if keeps(m) else "") for m in model.modules() if is_norm(m))
    if not kinds:
        return f"{type(model).__name__} without normalizers among its {sum(1 for _ in model.modules())} modules"
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def is_frozen(module: nn.Module) -> bool:
    """Whether the statistics of a layer are constants, in training too."""
    return isinstance(module, RunningNormalizer) and module.frozen


class Kept:
    """Values of buffers and parameters at a time, and the way back to them."""

    def __init__(self, modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter] = ()) -> None:
        self._buffers = [(m, k, b.detach().clone()) for m in modules for k, b in m._buffers.items() if b is not None]
        self._parameters = [(p, p.detach().clone()) for p in parameters]

    def restore(self) -> None:
        """Write the values back, in place."""
        with torch.no_grad():
            for module, key, value in self._buffers:
                buffer = module._buffers.get(key)
                if buffer is None or buffer.shape != value.shape:
                    raise ModelError(
                        f"a reset expects the model as it was: got {type(module).__name__} whose {key!r} has changed"
                    )
                buffer.copy_(value)
            for parameter, value in self._parameters:
                parameter.copy_(value)


class Watch:
    """What one layer is given in a block: when it came first, how often, how many samples, and the moments so far."""

    def __init__(self, layer: Keeper, name: str, source: Any, clock: Iterator[int]) -> None:
        self.layer, self.name, self._source, self._clock = layer, name, source, clock
        self.position, self.calls, self.samples = math.inf, 0, 0

    @property
    def state(self) -> Tensor:
        """Mean, variance, count and number of batches, in float64."""
        found: Tensor = self._source.collected
        return found

    @property
    def within(self) -> bool:
        """Whether the variances are averaged, not merged."""
        return bool(self._source.collects_within)

    def replace(self, state: Tensor, within: bool) -> None:
        """Put what all ranks have seen in the place of what this one has."""
        self._source.collected, self._source.collects_within = state, within

    def note(self, x: Tensor) -> None:
        """Take down a call."""
        self.position = min(self.position, next(self._clock))
        self.calls += 1
        self.samples += x.shape[0]


def finite_so_far(watches: list[Watch]) -> Tensor:
    """Whether all that each layer was given is finite, without waiting for a GPU."""
    if not watches:
        return torch.ones(0, dtype=torch.bool)
    return torch.stack([watch.state.isfinite().all().to(watches[0].state.device) for watch in watches])


def check_finite(watches: list[Watch], finite: list[Tensor], verb: str) -> None:
    """Raise for the first batch behind which a layer has met what is not finite; `finite` has `finite_so_far` behind each batch."""
    if not finite:
        return
    good = torch.stack(finite)
    for index in (~good.all(1)).nonzero().flatten().tolist()[:1]:
        first = min((w for w, fine in zip(watches, good[index].tolist(), strict=True) if not fine), key=lambda w: w.position)
        raise InputError(
            f"{verb} expects finite inputs of every layer: got NaN or infinity at {type(first.layer).__name__} {first.name!r} in batch "
            f"{index}, counted from 0; leave that batch out, or look for an overflow before the layer; the statistics are as they were"
        )


class _Collector:
    """The exact average of the batches of one of torch's layers, as ours have it inside `collecting`.

    The layer is in evaluation, and finds the statistics of this very batch in its buffers: it works as in training, but without moving
    averages and without waiting for other ranks. Where gradients pass through the statistics it has to be in training.
    """

    def __init__(self, layer: _NormBase, variance: Variance, training: bool, alone: bool) -> None:
        assert layer.running_mean is not None
        self.layer, self.alone, self.training = layer, alone, training or isinstance(layer, _InstanceNorm)
        self.collected = layer.running_mean.new_zeros((4, layer.num_features), dtype=torch.float64)
        self.collects_within = variance == "within" or isinstance(layer, _InstanceNorm)

    @torch.no_grad()
    def take(self, x: Tensor) -> None:
        """Add a batch."""
        if isinstance(self.layer, _InstanceNorm) and x.shape[0] == self.layer.num_features and x.dim() < self._rank():
            x = x.unsqueeze(0)
        if x.dim() < 2 or x.shape[1] != self.layer.num_features or x.numel() == 0:
            return  # the layer itself has the words for it
        batch = self._samples(x) if isinstance(self.layer, _InstanceNorm) else measure(x, sees="batch")[1]
        assert batch is not None
        mean, var = batch.mean.view(-1), batch.var.view(-1)
        if not self.training:
            if batch.count == 1 and not self.alone:
                raise TooFewValuesError(
                    f"{type(self.layer).__name__} expects more than 1 value per channel to measure by: got input of shape "
                    f"{tuple(x.shape)}; use a larger batch, drop the last incomplete one, or say layerwise=True"
                )
            for buffer, value in ((self.layer.running_mean, mean), (self.layer.running_var, var)):
                assert buffer is not None
                buffer.copy_(value)
        mean, var, within = mean.double(), var.double(), self.collects_within
        if within and not isinstance(self.layer, _InstanceNorm):
            var = Moments(mean, var, batch.count).unbiased()
        self.collected = union(self.collected, mean, var, batch.count, None, within)

    def _samples(self, x: Tensor) -> Moments:
        """The averages over samples that instance norm keeps."""
        cells, _ = measure(x, sees="cells")
        assert cells is not None
        return Moments(cells.mean.mean(0), cells.unbiased().mean(0), x.shape[0])

    def _rank(self) -> int:
        return next((rank for rank in (3, 4, 5) if f"{rank - 2}d" in type(self.layer).__name__), 3)


@contextlib.contextmanager
def watching(
    layers: Mapping[Keeper, str], *, variance: Variance = "total", gradients: bool = False, alone: bool = False
) -> Iterator[list[Watch]]:
    """In this block the layers work as in training, each by its own batch, and are watched; at its end they keep what was seen.

    `alone`: a batch of a single element is as good as any, as nobody behind the layer is watched. After an error the buffers are
    not as they were.
    """
    clock = itertools.count()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_watching(*item, clock, variance, gradients, alone)) for item in layers.items()]


@contextlib.contextmanager
def _watching(
    layer: Keeper, name: str, clock: Iterator[int], variance: Variance, gradients: bool, alone: bool
) -> Iterator[Watch]:
    ours = isinstance(layer, RunningNormalizer)
    collector = None if isinstance(layer, RunningNormalizer) else _Collector(layer, variance, gradients, alone)
    watch = Watch(layer, name, collector or layer, clock)

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        x = arguments[0] if arguments else next(iter(options.values()))
        watch.note(x)
        if collector is not None:
            collector.take(x)

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    mode, group = layer.training, layer.process_group if isinstance(layer, RunningNormalizer) else None
    kept = None if ours else Kept([layer])
    try:
        with collecting(layer, variance=variance) if ours else contextlib.nullcontext():
            if isinstance(layer, RunningNormalizer):
                layer.process_group = None  # ranks may have unequal numbers of batches: they meet at the end
            else:
                assert collector is not None
                layer.training = collector.training
            yield watch
        if collector is not None:
            assert kept is not None
            kept.restore()
            settle(layer, collector.collected, collector.collects_within)
    finally:
        layer.training = mode
        hook.remove()
        if isinstance(layer, RunningNormalizer):
            layer.process_group = group

"""`adapt`: a trained model meets data of another domain, without labels; `.reset()` takes it back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normsmith.errors import InputError, ModelError, OptionError
from normsmith.methods._base import one_of
from normsmith.methods._whitening import WhiteningNormalizer
from normsmith.methods.instance import InstanceNorm
from normsmith.moments import Moments
from normsmith.surgery._batches import check_loader
from normsmith.surgery._choice import Where
from normsmith.surgery._entropy import Optimize, entropy_steps
from normsmith.surgery._models import Forward, refuse_wrapped
from normsmith.surgery._parameters import places_of
from normsmith.surgery._ranks import Ranks
from normsmith.surgery._source import is_norm
from normsmith.surgery._statistics import Keeper, Kept, is_frozen, keepers, keeps, norms_of
from normsmith.surgery.recalibrate import LayerShift, Recalibration, recalibrate, shifts, statistics

PRIOR = 16.0  # samples that the source counts as, unless said
RATE = 1e-3
Statistics = dict[Keeper, tuple[Tensor, Tensor]]


class Before:
    """A model as it was: what adaptation may move, which gradients were wanted, and the modes."""

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self._kept = Kept(model.modules(), parameters)
        self._modes = [(module, module.training) for module in model.modules()]
        self._wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Take the model back."""
        self._kept.restore()
        for module, training in self._modes:
            module.training = training
        for parameter, requires_grad in self._wanted:
            parameter.requires_grad_(requires_grad)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """What `adapt` did; printed, it is a table."""

    method: str
    layers: tuple[LayerShift, ...]  # how far their statistics moved
    batches: int
    parameters: tuple[str, ...] = ()  # that were trained
    entropies: tuple[float, ...] = ()  # of each batch, before its step
    _before: Before = field(kw_only=True, repr=False)

    def reset(self) -> None:
        """Put back, to the bit, all buffers, the trained parameters, which gradients are wanted, and the modes."""
        self._before.restore()

    def __str__(self) -> str:
        lines = [f"adapted by {self.method}"]
        if self.entropies:
            step = f"entropy {self.entropies[0]:.3g} before the first step, {self.entropies[-1]:.3g} before the last"
            lines[0] += f": {len(self.parameters)} parameters, {step}"
        return "\n".join([*lines, str(Recalibration(self.layers, self.batches))] if self.layers else lines)


def adapt(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    method: Literal["adabn", "alpha", "tent"] = "adabn",
    batches: int | None = None,
    where: Where | None = None,
    forward: Forward | None = None,
    layerwise: bool = False,
    alpha: float | None = None,
    n_prior: float | None = None,
    lr: float | None = None,
    optimizer: Optimize | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Adaptation:
    """Adapt the normalizers of `model` to unlabelled data of another domain, in place; `.reset()` of what is returned undoes it.

    - `"adabn"`: the running statistics become those of the data, by `ns.recalibrate` (Li et al. 2016).
    - `"alpha"`: for few data, they become those of a mixture of source and data with weights a and 1 - a, by the law of total variance:
      mean = a m_s + (1 - a) m_t, var = a v_s + (1 - a) v_t + a (1 - a) (m_s - m_t)². a is `alpha`, or n_prior / (n_prior + n) for n
      samples: the union of the data with `n_prior` samples (16 unless given) of the source. Papers leave the last term out; without it
      the variance is less than that of the mixture. Instance norm averages variances of samples, and has no such term.
    - `"tent"`: one step for each batch down the entropy of the softmax of the logits, of weight and bias of normalizers alone, which all
      work by the batch; by Adam with `lr` 1e-3, or by `optimizer(parameters)` (Wang et al. 2021). Evaluation then has the statistics of
      all batches. One process only.

    Loader, `where`, `forward`, `layerwise` and `process_group` are as in `ns.recalibrate`. Frozen layers are left alone. After an error the
    model is as it was.
    """
    one_of("adapt", "method", method, ("adabn", "alpha", "tent"))
    _check_options(method, layerwise=layerwise or None, alpha=alpha, n_prior=n_prior, lr=lr, optimizer=optimizer)
    if method == "tent":
        return _tent(model, loader, batches, where, forward, _optimize(lr, optimizer), Ranks(process_group, "adapt"))
    found = _adaptable(model, where, method)
    before, source = Before(model, ()), statistics(found)
    try:
        done = recalibrate(
            model, loader, batches=batches, layerwise=layerwise, where=where, forward=forward, process_group=process_group
        )
        rows = done.layers
        if method == "alpha":
            prior = PRIOR if n_prior is None else n_prior
            for layer, row in zip(found, rows, strict=True):
                if row.calls and not row.frozen:
                    _blend(layer, *source[layer], prior / (prior + row.samples) if alpha is None else alpha)
            rows = shifts(found, source, dict(zip(found, rows, strict=True)))
    except BaseException:
        before.restore()
        raise
    return Adaptation(method, rows, done.batches, _before=before)


def _check_options(method: str, **given: object) -> None:
    owners = {
        "layerwise": ("adabn", "alpha"),
        "alpha": ("alpha",),
        "n_prior": ("alpha",),
        "lr": ("tent",),
        "optimizer": ("tent",),
    }
    for option, value in given.items():
        if value is not None and method not in owners[option]:
            wanted = " or ".join(map(repr, owners[option]))
            raise OptionError(f"adapt expects {option} only with method {wanted}: got it with {method!r}; leave it out")
    for one, other in (("alpha", "n_prior"), ("lr", "optimizer")):
        if given[one] is not None and given[other] is not None:
            raise OptionError(f"adapt expects either {one} or {other}: got both; leave one out")
    alpha, prior, lr = given["alpha"], given["n_prior"], given["lr"]
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise OptionError(f"adapt expects alpha, the weight of the source, from 0 to 1: got {alpha!r}")
    if isinstance(prior, int | float) and not prior >= 0:
        raise OptionError(f"adapt expects n_prior, a number of samples, of 0 or more: got {prior!r}; try 16")
    if isinstance(lr, int | float) and not lr > 0:
        raise OptionError(f"adapt expects lr above zero: got {lr!r}; try 1e-3")


def _adaptable(model: nn.Module, where: Where | None, method: str) -> dict[Keeper, str]:
    """The layers with statistics, all of a kind that the method can move."""
    found = keepers(model, where, "adapt")
    for layer, name in found.items():
        if method == "alpha" and isinstance(layer, WhiteningNormalizer):
            raise ModelError(
                f"adapt by alpha expects layers whose statistics are means and variances: got {name!r}, which has covariances; "
                'leave it out with where=, or try method="adabn"'
            )
    return found


def _optimize(lr: float | None, optimizer: Optimize | None) -> Optimize:
    return optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=RATE if lr is None else lr))


@torch.no_grad()
def _blend(layer: Keeper, mean: Tensor, var: Tensor, share: float) -> None:
    """Mix the old statistics into the new ones, with that share of the old."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    new_mean, new_var = layer.running_mean.double(), layer.running_var.double()
    mixed = Moments(mean, var, torch.full_like(mean, share)).merge(Moments(new_mean, new_var, torch.full_like(mean, 1 - share)))
    averaged = isinstance(layer, InstanceNorm | _InstanceNorm)
    layer.running_mean.copy_(mixed.mean)
    layer.running_var.copy_(share * var + (1 - share) * new_var if averaged else mixed.var)


def _tent(
    model: nn.Module,
    loader: Iterable[Any],
    batches: int | None,
    where: Where | None,
    forward: Forward | None,
    optimize: Optimize,
    ranks: Ranks,
) -> Adaptation:
    refuse_wrapped(model, "adapt")
    check_loader(loader, batches, "adapt")
    if ranks.several:
        raise OptionError(
            "adapt by tent expects one process, whose steps are its own: got several ranks; pass a process_group of this rank alone"
        )
    chosen = {m: n for n, m in model.named_modules() if is_norm(m) and not is_frozen(m) and (where is None or where(m, n))}
    parameters = {p.parameter: p.name for p in places_of(model) if p.kind == "affine" and p.module in chosen}
    if not parameters:
        raise ModelError(
            f"adapt by tent expects normalizers with weight or bias, not frozen: got {norms_of(model)}; try method='adabn'"
        )
    layers = {module: name for module, name in chosen.items() if keeps(module)}
    before, source = Before(model, parameters), statistics(layers)
    try:
        watches, entropies = entropy_steps(model, loader, batches, forward, layers, list(parameters), optimize)
        if not entropies:
            raise InputError(
                "adapt expects a loader with at least one batch: got an empty one; an iterator is empty after one use"
            )
    except BaseException:
        before.restore()
        raise
    rows = shifts(layers, source, {watch.layer: watch for watch in watches})
    return Adaptation("tent", rows, len(entropies), tuple(parameters.values()), entropies, _before=before)

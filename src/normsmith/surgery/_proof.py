"""What a conversion changes in numbers: each successor beside its predecessor, on the inputs of the model as it was."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normsmith.errors import InputError, ModelError, NormsmithError
from normsmith.surgery._models import evaluating, run, tensors
from normsmith.surgery.conditioned import given_examples

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(eq=False)
class Trial:
    """One layer on trial: who would take its place, with which values, and how far apart their outputs are."""

    name: str
    old: nn.Module
    new: nn.Module
    norm: nn.Module  # the normalizer in `new`
    channel_dim: int
    values: dict[str, Tensor] = field(default_factory=dict)  # for the norm's parameters, once fitted
    error: float | None = None  # the largest difference, relative to the largest output; None if the layer was not reached
    why_not_fitted: str = "the data do not reach it"

    def output(self, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[str, Tensor]) -> Tensor:
        """The successor's output."""
        prefix = "" if self.norm is self.new else "norm."
        with _without_hooks(self.new), given_examples(self.new):  # the old layer has run the hooks
            y: Tensor = (
                functional_call(self.new, {prefix + key: t for key, t in values.items()}, args, kwargs)
                if values
                else self.new(*args, **kwargs)
            )
        return y


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """What the model makes of an example, in evaluation."""
    with evaluating(model), given_examples(model):
        return [t.detach().clone() for t in tensors(run(model, example))]


def measure(model: nn.Module, trials: Sequence[Trial], example: Any) -> list[Tensor]:
    """Fill in the error of every trial; returns the model's outputs."""

    def compare(trial: Trial, args: Any, kwargs: Any, y: Tensor) -> None:
        if trial.error is None:
            _try_in_training(trial, args, kwargs)
        error = distance(y, trial.output(args, kwargs, trial.values))
        trial.error = error if trial.error is None else max(trial.error, error)

    return _watch(model, trials, example, compare)


def _try_in_training(trial: Trial, args: Any, kwargs: Any) -> None:
    """Raise if the successor refuses in training what the old layer takes, say a single position; no statistic moves."""
    try:
        _in_training(trial.new, args, kwargs)
    except NormsmithError:
        try:
            _in_training(trial.old, args, kwargs)
        except Exception:  # noqa: BLE001  (a layer of anyone's)
            return
        raise


def _in_training(layer: nn.Module, args: Any, kwargs: Any) -> None:
    modes = {module: module.training for module in layer.modules()}
    buffers = {name: t.clone() for name, t in layer.named_buffers()}
    try:
        layer.train()
        with _without_hooks(layer), given_examples(layer), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional_call(layer, buffers, args, kwargs)
    finally:
        for module, training in modes.items():
            module.training = training


def distance(expected: Tensor, actual: Tensor) -> float:
    """The largest difference, relative to the largest of the expected numbers."""
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)) if difference else 0.0


def fit(model: nn.Module, trials: Sequence[Trial], example: Any) -> None:
    """Choose weight and bias of every successor that has them, per channel by least squares, for the outputs of its predecessor."""
    sums: dict[Trial, Tensor] = {}

    def add(trial: Trial, args: Any, kwargs: Any, y: Tensor) -> None:
        unit = _unit(trial.norm)
        z = trial.output(args, kwargs, unit)
        other = trial.output(args, kwargs, {key: t + 2 if key == "bias" else t * 3 for key, t in unit.items()})
        if z.shape != y.shape or not torch.allclose(other, z * 3 + 2 * ("bias" in unit), rtol=1e-3, atol=1e-3):
            trial.why_not_fitted = "its output is not its weight times something plus its bias"
            return
        flat, target = (t.movedim(trial.channel_dim, 0).flatten(1).double() for t in (z, y))
        terms = (torch.ones_like(flat), flat, target, flat * flat, flat * target)
        found = torch.stack([term.sum(1) for term in terms])
        sums[trial] = sums[trial] + found if trial in sums else found

    _watch(model, [t for t in trials if _unit(t.norm)], example, add)
    for trial, (count, z, y, zz, zy) in sums.items():
        if trial.why_not_fitted.startswith("its output"):
            continue
        trial.why_not_fitted = ""
        trial.values = _least_squares(_unit(trial.norm), count, z, y, zz, zy)


def _unit(norm: nn.Module) -> dict[str, Tensor]:
    """Weight 1 and bias 0, of one number per channel; empty where the norm has no such weight of its own."""
    weight, bias = norm._parameters.get("weight"), norm._parameters.get("bias")
    if weight is None or weight.dim() != 1:
        return {}
    return {"weight": torch.ones_like(weight)} | ({} if bias is None else {"bias": torch.zeros_like(bias)})


def _least_squares(unit: dict[str, Tensor], count: Tensor, z: Tensor, y: Tensor, zz: Tensor, zy: Tensor) -> dict[str, Tensor]:
    if "bias" not in unit:
        return {"weight": torch.where(zz > 0, zy / zz, 0.0).to(unit["weight"])}
    spread, together = zz - z * z / count, zy - z * y / count
    weight = torch.where(spread > 1e-12 * zz, together / spread, 0.0)
    return {"weight": weight.to(unit["weight"]), "bias": ((y - weight * z) / count).to(unit["bias"])}


def _watch(
    model: nn.Module, trials: Sequence[Trial], example: Any, see: Callable[[Trial, Any, Any, Tensor], None]
) -> list[Tensor]:
    """Run the model as it is, showing each trial the inputs and the output of its old layer; returns the model's outputs."""

    def hook(trial: Trial) -> Callable[..., None]:
        def shown(_: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
            try:
                see(trial, args, kwargs, y)
            except NormsmithError as error:
                raise ModelError(
                    f"convert expects a successor that works where {trial.name!r} is: got {type(trial.norm).__name__}, which does not: "
                    f"{error}; leave that layer with where="
                ) from None

        return shown

    modes = [(t.new, t.new.training) for t in trials]
    handles = [t.old.register_forward_hook(hook(t), prepend=True, with_kwargs=True) for t in trials]
    try:
        for new, _ in modes:
            new.eval()
        return outputs(model, example)
    except NormsmithError:
        raise
    except Exception as error:
        raise InputError(
            f"convert expects verify data that the model takes, a tensor, or a tuple or mapping of arguments: got "
            f"{_shapes(example)}, and {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for new, training in modes:
            new.train(training)


def _shapes(example: Any) -> str:
    found = [str(tuple(t.shape)) for t in tensors(example)]
    return f"shape {', '.join(found)}" if found else type(example).__name__


@contextlib.contextmanager
def _without_hooks(layer: nn.Module) -> Iterator[None]:
    kept = {kind: layer.__dict__[kind] for kind in _HOOKS}
    layer.__dict__.update({kind: type(hooks)() for kind, hooks in kept.items()})
    try:
        yield
    finally:
        layer.__dict__.update(kept)

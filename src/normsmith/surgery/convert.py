"""`convert`: any normalizer of any model into another, with what it learned, proof of what changed, and a way back."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normsmith.errors import ModelError, OptionError
from normsmith.methods._base import one_of
from normsmith.surgery import _optimizers, _proof
from normsmith.surgery._choice import Candidate, Choice, Targets, Where, candidates, nothing_to_do
from normsmith.surgery._models import refuse_wrapped
from normsmith.surgery._source import NotUnderstoodError
from normsmith.surgery._successor import Successor, succeed
from normsmith.surgery.conversion import Conversion, Row, Swap


def convert(
    model: nn.Module,
    to: Targets,
    *,
    where: Where | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    verify: Any = None,
    keep: Literal["weights", "function"] = "weights",
) -> Conversion:
    """Convert the normalizers of `model`, in place, and return what was done; on an error nothing is.

    - `to`: a catalog name ("group:num_groups=8"), a class, a factory of `num_features`; or a mapping from names of layers, names of parts
      that hold them, regular expressions (compiled, or "re:..." for the whole name) and types to those, or to None, which leaves a layer.
      The longest name wins over a pattern, the first pattern over a type.
    - `where(module, name)`: only layers for which it is true.
    - `optimizer`: its groups lose the parameters that go, and get those that come beside the ones of the same layer; state is kept.
    - `verify`: a tensor, or a tuple or mapping of the model's arguments. In evaluation, each layer and the whole model are compared before
      and after, and a successor that cannot work there is an error.
    - `keep="function"`: where the successor has no running statistics, its weight and bias are fitted, so that on the data of `verify` its
      output is as near that of the old layer as per-channel weights can bring it; "weights" keeps those of the old layer.

    Successors hold the old layers' own parameters, buffers and hooks, not copies: what was tied stays so. Known are torch's layers, ours,
    and those of other libraries that compute what one of the catalog does, tried on random data; others are left, with the reason.
    """
    one_of("convert", "keep", keep, ("weights", "function"))
    if keep == "function" and verify is None:
        raise OptionError('convert expects data in verify to keep the function on: got keep="function" without; give a batch')
    refuse_wrapped(model, "convert")
    optimizers = _optimizers.check(optimizer, model)
    choice, found = Choice(model, to, where), candidates(model)
    chosen, left = _successors(model, choice, found)
    if not chosen:
        raise nothing_to_do(model, found, left)
    trials = [_trial(c, s) for c, s in chosen]
    before = None
    if verify is not None:
        if keep == "function":
            _fit(model, trials, verify)
        before = _proof.measure(model, trials, verify)
    return _commit(model, found, chosen, left, trials, optimizers, verify, before, keep)


def _successors(
    model: nn.Module, choice: Choice, found: list[Candidate]
) -> tuple[list[tuple[Candidate, Successor]], dict[str, str]]:
    """The layers to convert with what takes their places, and the reasons for those that must be left."""
    chosen, left = [], {}
    near: Tensor | None = next((t for t in model.parameters() if t.is_floating_point()), None)
    for candidate in found:
        target = choice.target(candidate)
        if target is None:
            continue
        try:
            if candidate.source is None:
                raise NotUnderstoodError(candidate.reason)
            chosen.append((candidate, succeed(candidate.layer, candidate.source, target, near)))
        except NotUnderstoodError as error:
            if choice.names_it(candidate):
                raise ModelError(
                    f"convert expects a layer that it can convert: got {candidate.name!r}, a {type(candidate.layer).__name__}: {error}"
                ) from None
            left[candidate.name] = str(error)
    return chosen, left


def _trial(candidate: Candidate, successor: Successor) -> _proof.Trial:
    assert candidate.source is not None
    dim = -1 if candidate.source.channels_last else 1
    return _proof.Trial(candidate.name, candidate.layer, successor.layer, successor.norm, dim)


def _fit(model: nn.Module, trials: list[_proof.Trial], verify: Any) -> None:
    free = [t for t in trials if not _keeps_statistics(t.norm)]
    if not free:
        raise OptionError(
            'convert expects successors without running statistics for keep="function": got only ones that take them over, '
            "and with them the function; leave it out"
        )
    _proof.fit(model, free, verify)


def _commit(
    model: nn.Module,
    found: list[Candidate],
    chosen: list[tuple[Candidate, Successor]],
    left: dict[str, str],
    trials: list[_proof.Trial],
    optimizers: list[Optimizer],
    verify: Any,
    before: list[Tensor] | None,
    keep: str,
) -> Conversion:
    """Everything that was prepared, done; undone again if the model does not run then."""
    swaps = [Swap(c.layer, s.layer, _slots(model, c)) for c, s in chosen]
    result = model if swaps[0].slots else swaps[0].new  # only the model itself is in no slot
    parameters = set(model.parameters())
    touched = {p for swap in swaps for p in swap.old.parameters()}
    patches = [_optimizers.Patch(one, touched) for one in optimizers]
    rows = _rows(found, dict(zip((c.layer for c, _ in chosen), zip(chosen, trials, strict=True), strict=True)), left, keep)
    conversion = Conversion(result, rows, swaps, None, model)
    for swap in swaps:
        swap.do()
    with torch.no_grad():
        for trial in trials:
            for key, value in trial.values.items():
                trial.norm._parameters[key].copy_(value)  # type: ignore[union-attr]
    if before is not None:
        try:
            after = _proof.outputs(result, verify)
        except Exception as error:
            conversion.undo()
            raise ModelError(
                f"convert expects a model that runs with its new layers: got {type(error).__name__}: {error}; leave the layer it is about"
            ) from error
        conversion.output_error = max((_proof.distance(a, b) for a, b in zip(before, after, strict=True)), default=None)
    gone = parameters - set(result.parameters())
    added = [
        (f"{c.name}.{key}".lstrip("."), p, [*s.norm.parameters(), *swap.old.parameters(), *parameters])
        for (c, s), swap in zip(chosen, swaps, strict=True)
        for key, p in s.layer.named_parameters()
        if p not in parameters
    ]
    for patch in patches:
        patch.apply(gone, added)
    conversion.when_undone(*(patch.undo for patch in patches))
    return conversion


def _slots(model: nn.Module, candidate: Candidate) -> tuple[tuple[nn.Module, str], ...]:
    """Where a layer hangs: each parent once, with its name there."""
    slots: dict[tuple[nn.Module, str], None] = {}
    for name in candidate.names:
        if name:
            parent, _, key = name.rpartition(".")
            slots[model.get_submodule(parent), key] = None
    return tuple(slots)


def _rows(
    found: list[Candidate],
    done: dict[nn.Module, tuple[tuple[Candidate, Successor], _proof.Trial]],
    left: dict[str, str],
    keep: str,
) -> list[Row]:
    rows = []
    for candidate in found:
        old, also = type(candidate.layer).__name__, tuple(candidate.names[1:])
        if candidate.layer in done:
            (_, made), trial = done[candidate.layer]
            new = type(made.norm).__name__
            fitted = ("weight and bias fitted",) if trial.values else ()
            reason = "" if keep == "weights" or trial.values or _keeps_statistics(made.norm) else trial.why_not_fitted
            rows.append(
                Row(candidate.name, old, new, made.carried, made.dropped, (*made.fresh, *fitted), trial.error, reason, also)
            )
        elif candidate.name in left:
            rows.append(Row(candidate.name, old, None, reason=left[candidate.name], also=also))
    return rows


def _keeps_statistics(norm: nn.Module) -> bool:
    return getattr(norm, "running_mean", None) is not None

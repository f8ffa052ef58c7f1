"""`fold`: norms that are constants in evaluation go into the convolutions and linear layers beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normsmith.errors import ModelError
from normsmith.surgery._console import as_text
from normsmith.surgery._constant import Weighted, is_weighted, storages
from normsmith.surgery._models import expect_module, places, run, wrapper
from normsmith.surgery._neighbours import watch
from normsmith.surgery._plans import Plan, Planner
from normsmith.surgery._source import is_norm
from normsmith.surgery._trial import Error, Rehearsal, copied, differences, is_rounding, outputs, trial


@dataclass(frozen=True)
class FoldRow:
    """What became of one norm."""

    layer: str
    kind: str
    into: tuple[str, ...]  # the layers that hold it now, none if it was left
    reason: str  # why it was left
    error: float | None  # of the output at its place, for the example's own inputs there
    relative: float | None  # to the largest output there


@dataclass(frozen=True, eq=False)
class Fold:
    """A model that was folded, a row for each norm, and how far its outputs for the example moved; prints as a table."""

    model: nn.Module
    report: tuple[FoldRow, ...]
    error: Error
    _surgery: "_Surgery" = field(repr=False)

    @property
    def folded(self) -> list[str]:
        """The norms that are gone."""
        return [row.layer for row in self.report if row.into]

    @property
    def left(self) -> dict[str, str]:
        """The norms that are still there, and why."""
        return {row.layer: row.reason for row in self.report if not row.into}

    def undo(self) -> None:
        """Put the norms and the weights back, to the bit; parameters stay the objects they are."""
        self._surgery.take_back()

    def __str__(self) -> str:
        table = Table(
            title=f"{len(self.folded)} of {len(self.report)} norms folded",
            caption=f"the model's output moved by {self.error.largest:.1e}, {self.error.relative:.1e} of the largest",
        )
        for heading in ("layer", "norm", "folded into", "error", "relative"):
            table.add_column(heading, justify="right" if heading in {"error", "relative"} else "left", overflow="fold")
        for row in self.report:
            what = ", ".join(row.into) if row.into else f"left: {row.reason}"
            table.add_row(row.layer, row.kind, what, _number(row.error), _number(row.relative))
        return as_text(table)


def fold(model: nn.Module, example: Any) -> Fold:
    """Fold every norm of `model` that evaluates as a constant affine map per channel into the layers before or after it; in place.

    The model is meant for evaluation from here on, whatever mode it is in now: what is folded are the running statistics. `example` is a
    tensor, or a tuple or mapping of arguments. The model runs on it, in evaluation, to see who reads what: a norm is folded into the
    convolutions or linear layers whose outputs it alone reads; or else into those that alone read its outputs, if they pad no zeros.
    A path that the example does not take is not seen. Everything else is left as it is, with the reason in the result, and so is
    what turns out to change an output by more than rounding. `print` the result for a table; `result.undo()` takes it all back,
    for which it keeps a copy of the weights.
    """
    expect_module(model, "fold")
    names = {module: found[0] for module, found in places(model).items()}
    norms = [module for module in names if is_norm(module)]
    _refuse(model, norms)
    wrapped = _wrapped(model)
    reasons: dict[nn.Module, str] = {norm: wrapped[norm] for norm in norms if norm in wrapped}
    watched = [module for module in names if module not in wrapped and (is_norm(module) or is_weighted(module))]
    free = [norm for norm in norms if norm not in wrapped]
    surgery, rehearsal, error = _Surgery(model, ()), Rehearsal(()), Error()
    if free:
        with trial(model, bool(wrapped)):
            seen, output = watch(model, copied(example), watched)
            first = outputs(output)
            planner = Planner(seen, names, storages(model))
            plans = []
            for norm in free:
                found = planner.plan(norm)
                if isinstance(found, Plan):
                    plans.append(found)
                else:
                    reasons[norm] = found
        attempt = _Attempt(model, example, bool(wrapped), plans, first, reasons)
        surgery, rehearsal, error = attempt.surgery, attempt.rehearsal, attempt.make()
        surgery.settle()
    done = {plan.norm: plan for plan in surgery.done}
    report = tuple(_row(norm, names, done.get(norm), reasons.get(norm, ""), rehearsal) for norm in norms)
    return Fold(model, report, error, surgery)


class _Attempt:
    """Plans carried out as far as they hold."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        eager: bool,
        plans: Sequence[Plan],
        first: list[Tensor],
        reasons: dict[nn.Module, str],
    ) -> None:
        self.model, self.example, self.eager = model, example, eager
        self.expected, self.reasons = first, reasons
        self.rehearsal = Rehearsal(plans)
        self.surgery = _Surgery(model, plans)

    def make(self) -> Error:
        """Fold what holds, note why the rest does not, and return the error of the model's output."""
        plans = self.rehearsal.plans
        if not plans:
            return Error()
        with trial(self.model, self.eager), self.rehearsal.listening():
            again = outputs(run(self.model, copied(self.example)))
        if not is_rounding(differences(again, self.expected), again):
            self.reasons.update((plan.norm, "the model does not repeat its own output for the example") for plan in plans)
            return Error()
        self.expected = again
        for plan in self.rehearsal.beyond:
            self.reasons[plan.norm] = (
                f"its output would differ by {self.rehearsal.errors[plan].largest:.1e}, more than rounding"
            )
        sound = [plan for plan in plans if plan not in self.rehearsal.beyond]
        try:
            return self._carry_out(sound)
        except BaseException:
            self.surgery.apply(())
            raise

    def _carry_out(self, plans: list[Plan]) -> Error:
        error, reason = self._with(plans)
        if not reason:
            return error
        most = self._most(plans, [])
        error, reason = self._with(most)
        if reason:  # on its own each held
            self.reasons.update((plan.norm, reason) for plan in most)
            error, _ = self._with([])
        return error

    def _most(self, plans: list[Plan], beside: list[Plan]) -> list[Plan]:
        """As many of the plans as hold together with those that do; halved until the culprits stand alone."""
        _, reason = self._with([*beside, *plans])
        if not reason:
            return plans
        if len(plans) == 1:
            self.reasons[plans[0].norm] = reason
            return []
        half = len(plans) // 2
        first = self._most(plans[:half], beside)
        return first + self._most(plans[half:], beside + first)

    def _with(self, plans: list[Plan]) -> tuple[Error, str]:
        """The error of the model's output with these plans carried out, and what is wrong with it, if anything."""
        self.surgery.apply(plans)
        try:
            with trial(self.model, self.eager):
                found = outputs(run(self.model, copied(self.example)))
        except Exception as problem:  # noqa: BLE001  (the model ran before: whatever it is, folding is the cause)
            return Error(), f"without it the model raises {type(problem).__name__}: {problem}"
        error = differences(found, self.expected)
        return error, "" if is_rounding(error, found) else f"the model's output would move by {error.largest:.1e}"


class _Surgery:
    """What plans touch in a model, as it was, and the way there and back."""

    def __init__(self, model: nn.Module, plans: Sequence[Plan]) -> None:
        norms = {plan.norm for plan in plans}
        for plan in plans:
            if plan.rest not in plan.norm._modules.values():
                plan.rest.training = plan.norm.training
        self.done: tuple[Plan, ...] = ()
        self.taken_back = False
        self.slots = [
            (parent, key, child)
            for parent in model.modules()
            for key, child in parent._modules.items()
            if child is not None and child in norms
        ]
        self.weights = {
            layer: (layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone())
            for plan in plans
            for layer in plan.layers
        }

    def apply(self, plans: Sequence[Plan]) -> None:
        """Bring the model to where exactly these plans are carried out."""
        for layer, (weight, bias) in self.weights.items():
            _write(layer, weight, bias)
        for plan in plans:
            for layer in plan.layers:
                _write(layer, *plan.weights(layer))
        rests = {plan.norm: plan.rest for plan in plans}
        for parent, key, norm in self.slots:
            parent._modules[key] = rests.get(norm, norm)
        self.done = tuple(plans)
        torch.clear_autocast_cache()  # it may hold the weights in another type

    def settle(self) -> None:
        """Forget what no plan that was carried out has touched."""
        touched = {layer for plan in self.done for layer in plan.layers}
        self.weights = {layer: was for layer, was in self.weights.items() if layer in touched}

    def take_back(self) -> None:
        """Bring the model to where it was, or raise if it is no longer what `apply` made of it."""
        rests = {plan.norm: plan.rest for plan in self.done}
        same = not self.taken_back and all(
            parent._modules.get(key) is rests.get(norm, norm) for parent, key, norm in self.slots
        )
        for layer, (was, _) in self.weights.items():
            same &= (layer.weight.shape, layer.weight.dtype, layer.weight.device) == (was.shape, was.dtype, was.device)
        if not same:
            raise ModelError(
                "undo expects the model as fold left it: got one that was taken back already, edited, or moved since; "
                "move it back to where it was, or load the weights from before"
            )
        self.apply(())
        self.taken_back = True


def _write(layer: Weighted, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer these values; the parameters it has stay the objects they are."""
    with torch.inference_mode(False), torch.no_grad():
        layer.weight.copy_(weight)
        if bias is None:
            layer.bias = None
            return
        if layer.bias is None:
            like = layer.weight
            empty = torch.empty(bias.shape, dtype=like.dtype, device=like.device)
            layer.bias = nn.Parameter(empty, requires_grad=like.requires_grad)
        layer.bias.copy_(bias)


def _refuse(model: nn.Module, norms: Sequence[nn.Module]) -> None:
    """Raise for models that nothing can be said about."""
    if not norms:
        raise ModelError("fold expects a model with norms: got one without; there is nothing to fold")
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise ModelError("fold expects a model whose lazy layers know their sizes: got one that never ran; run it once")


def _wrapped(model: nn.Module) -> dict[nn.Module, str]:
    """The modules inside wrappers that keep their own record of what is in them, with what to do."""
    found: dict[nn.Module, str] = {}
    for module in model.modules():
        kind, inside = wrapper(module)
        if kind:
            for part in module.modules():
                found.setdefault(part, f"it is {kind}: fold {inside}, and wrap it again afterwards")
    return found


def _row(norm: nn.Module, names: dict[nn.Module, str], plan: Plan | None, reason: str, rehearsal: Rehearsal) -> FoldRow:
    into = () if plan is None else tuple(names[layer] for layer in plan.layers)
    error = None if plan is None else rehearsal.errors[plan]
    figures = (None, None) if error is None else (error.largest, error.relative)
    return FoldRow(names[norm], type(norm).__name__, into, reason, *figures)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"

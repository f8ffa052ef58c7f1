"""`fold`: norms that are constants in evaluation go into the convolutions and linear layers beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normsmith.errors import ModelError
from normsmith.surgery._carving import Carving
from normsmith.surgery._console import as_text
from normsmith.surgery._constant import is_weighted, storages
from normsmith.surgery._models import expect_module, places, run, wrapper
from normsmith.surgery._neighbours import watch
from normsmith.surgery._packed import packing
from normsmith.surgery._plans import Plan, Planner
from normsmith.surgery._source import is_norm
from normsmith.surgery._trial import Error, Rehearsal, copied, differences, is_rounding, outputs, trial

NOTHING = "there is no Conv2d or Conv3d in float32 on the CPU whose weights are its own alone"


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
    packed: tuple[str, ...]  # the convolutions whose weights are packed
    unpacked: str  # why none is that was to be
    _carving: Carving = field(repr=False)

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
        self._carving.take_back()

    def __str__(self) -> str:
        title = f"{len(self.folded)} of {len(self.report)} norms folded"
        if self.packed:
            title += f", {len(self.packed)} convolutions packed"
        caption = f"the model's output moved by {self.error.largest:.1e}, {self.error.relative:.1e} of the largest"
        if self.unpacked:
            caption += f"; nothing is packed: {self.unpacked}"
        table = Table(title=title, caption=caption)
        for heading in ("layer", "norm", "folded into", "error", "relative"):
            table.add_column(heading, justify="right" if heading in {"error", "relative"} else "left", overflow="fold")
        for row in self.report:
            what = ", ".join(row.into) if row.into else f"left: {row.reason}"
            table.add_row(row.layer, row.kind, what, _number(row.error), _number(row.relative))
        return as_text(table)


def fold(model: nn.Module, example: Any, *, pack: bool = False) -> Fold:
    """Fold every norm of `model` that evaluates as a constant affine map per channel into the layers before or after it; in place.

    The model is meant for evaluation from here on, whatever mode it is in now: what is folded are the running statistics. `example` is a
    tensor, or a tuple or mapping of arguments. The model runs on it, in evaluation, to see who reads what: a norm is folded into the
    convolutions or linear layers whose outputs it alone reads; or else into those that alone read its outputs, if they pad no zeros.
    A path that the example does not take is not seen. Everything else is left as it is, with the reason in the result, and so is
    what turns out to change an output by more than rounding. `print` the result for a table; `result.undo()` takes it all back,
    for which it keeps a copy of the weights.

    `pack=True` also keeps the weights of every `Conv2d` and `Conv3d` in float32 on the CPU in the layout that oneDNN computes in, which
    it otherwise brings them to at every call; in memory they are then twice. Outputs become channels_last, as they do with
    `model.to(memory_format=torch.channels_last)`. It serves forwards without gradients (`torch.no_grad`, `torch.inference_mode`); weights
    that change are packed anew, but a write to `weight.data` in place is not seen, as nothing in torch sees it.
    """
    expect_module(model, "fold")
    names = {module: found[0] for module, found in places(model).items()}
    norms = [module for module in names if is_norm(module)]
    _refuse(model, norms, pack)
    wrapped = _wrapped(model)
    reasons: dict[nn.Module, str] = {norm: wrapped[norm] for norm in norms if norm in wrapped}
    inside = [module for module in names if module not in wrapped]
    packable = packing(inside, storages(model)) if pack else {}
    carving, rehearsal, error, unpacked = Carving(model, (), {}), Rehearsal(()), Error(), NOTHING
    if packable or any(is_norm(module) for module in inside):
        with trial(model, bool(wrapped)):
            seen, output = watch(
                model, copied(example), [module for module in inside if is_norm(module) or is_weighted(module)]
            )
            first = outputs(output)
            planner = Planner(seen, names, storages(model))
            plans = []
            for norm in filter(is_norm, inside):
                found = planner.plan(norm)
                if isinstance(found, Plan):
                    plans.append(found)
                else:
                    reasons[norm] = found
        attempt = _Attempt(model, example, bool(wrapped), plans, packable, first, reasons)
        carving, rehearsal, error = attempt.carving, attempt.rehearsal, attempt.make()
        carving.settle()
        unpacked = attempt.unpacked
    done = {plan.norm: plan for plan in carving.done}
    report = tuple(_row(norm, names, done.get(norm), reasons.get(norm, ""), rehearsal) for norm in norms)
    packed = tuple(names[layer] for layer in packable) if carving.packed else ()
    return Fold(model, report, error, packed, unpacked if pack and not packed else "", carving)


class _Attempt:
    """Plans carried out as far as they hold."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        eager: bool,
        plans: Sequence[Plan],
        packable: Mapping[nn.Module, nn.Module],
        first: list[Tensor],
        reasons: dict[nn.Module, str],
    ) -> None:
        self.model, self.example, self.eager = model, example, eager
        self.expected, self.reasons, self.unpacked = first, reasons, NOTHING
        self.rehearsal = Rehearsal(plans)
        self.carving = Carving(model, plans, packable)

    def make(self) -> Error:
        """Fold and pack what holds, note why the rest does not, and return the error of the model's output."""
        plans = self.rehearsal.plans
        try:
            sound = self._sound(plans) if plans else []
            error = self._carry_out(sound) if sound else Error()
            return self._pack(error) if self.carving.packing else error
        except BaseException:
            self.carving.apply(())
            raise

    def _sound(self, plans: Sequence[Plan]) -> list[Plan]:
        """Those that are off by no more than rounding where they are."""
        with trial(self.model, self.eager), self.rehearsal.listening():
            again = outputs(run(self.model, copied(self.example)))
        if not is_rounding(differences(again, self.expected), again):
            self.reasons.update((plan.norm, "the model does not repeat its own output for the example") for plan in plans)
            return []
        self.expected = again
        for plan in self.rehearsal.beyond:
            self.reasons[plan.norm] = (
                f"its output would differ by {self.rehearsal.errors[plan].largest:.1e}, more than rounding"
            )
        return [plan for plan in plans if plan not in self.rehearsal.beyond]

    def _pack(self, before: Error) -> Error:
        """Pack the convolutions unless that does harm; the error of the model's output was this before."""
        plans = self.carving.done
        error, self.unpacked = self._with(plans, packed=True)
        if not self.unpacked:
            return error
        self.carving.apply(plans)
        return before

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

    def _with(self, plans: Sequence[Plan], *, packed: bool = False) -> tuple[Error, str]:
        """The error of the model's output with these plans carried out, and what is wrong with it, if anything."""
        self.carving.apply(plans, packed=packed)
        try:
            with trial(self.model, self.eager):
                found = outputs(run(self.model, copied(self.example)))
        except Exception as problem:  # noqa: BLE001  (the model ran before: whatever it is, folding is the cause)
            what = "packed" if packed else "without it"
            return Error(), f"{what} the model raises {type(problem).__name__}: {problem}"
        error = differences(found, self.expected)
        return error, "" if is_rounding(error, found) else f"the model's output would move by {error.largest:.1e}"


def _refuse(model: nn.Module, norms: Sequence[nn.Module], pack: bool) -> None:
    """Raise for models that nothing can be said about."""
    if not norms and not pack:
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

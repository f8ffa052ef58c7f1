"""`place`: the weights of a model's layers normalized, and the way back."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from normsmith.errors import ModelError, OptionError
from normsmith.tables import as_text
from normsmith.weights._initialise import initialise
from normsmith.weights._rows import Rows, Weighted
from normsmith.weights.catalog import Entry, Map, Settings, find
from normsmith.weights.parametrizations import Convention

Where = Callable[[nn.Module, str], bool]
_SAME = 1e-4  # of a weight: less is rounding, or eps


@dataclass(frozen=True)
class Row:
    """One layer: its weight as rows, and what became of the weight as one long vector; or why it was left.

    `change` is the length of the difference, `size` that of the new weight, both in lengths of the old one; `turned` the angle between
    the two, in degrees.
    """

    layer: str
    kind: str
    rows: int = 0
    fan_in: int = 0
    change: float = 0.0
    reason: str = ""
    size: float = 1.0
    turned: float = 0.0

    @property
    def words(self) -> str:
        """What became of the weight, to be read."""
        if self.change < _SAME:
            return "weight as it was"
        angle = f", turned by {self.turned:.0f}°" if self.turned >= 0.5 else ""
        return f"weight {self.size:.2g} times as large{angle}"


@dataclass(frozen=True, eq=False)
class _Placed:
    """A layer with its parameter as it was: the object, which an optimizer may hold, and its numbers; those of the bias too."""

    layer: nn.Module
    name: str
    parameter: nn.Parameter
    value: Tensor
    bias: Tensor | None
    chain: nn.Module


class Placement:
    """Weights that are normalized; printed, it is a table."""

    def __init__(self, name: str, rows: tuple[Row, ...], placed: list[_Placed]) -> None:
        self.name, self.rows = name, rows
        self._placed = placed
        self._over = ""

    @property
    def placed(self) -> list[str]:
        """The names of the layers whose weights are normalized."""
        return [row.layer for row in self.rows if not row.reason]

    def fold(self) -> list[str]:
        """Leave plain parameters with the weights as evaluation has them now; the names of the layers.

        The parameters are the very ones from before; after weight norm, an optimizer that was made in between holds others.
        """
        self._end("fold", [each.chain.eval()().detach().clone() for each in self._placed])
        return self.placed

    def undo(self) -> list[str]:
        """The parameters from before, with the numbers they had then; the names of the layers."""
        self._end("undo", [each.value for each in self._placed])
        with torch.no_grad():
            for each in self._placed:
                if each.bias is not None:
                    each.layer.bias.copy_(each.bias)  # type: ignore[operator]
        return self.placed

    def _end(self, verb: str, values: list[Tensor]) -> None:
        if self._over:
            raise ModelError(f"{verb} expects a placement that stands: got one after {self._over}(); place again")
        for each in self._placed:
            chain = getattr(each.layer, "parametrizations", {})
            if "weight" not in chain or chain["weight"] is not each.chain:
                raise ModelError(f"{verb} expects the weight of {each.name!r} as it was placed: got another; place again")
        for each, value in zip(self._placed, values, strict=True):
            like: Any = each.layer.weight
            moved = value.to(like.device, like.dtype)
            parametrize.remove_parametrizations(each.layer, "weight", leave_parametrized=True)
            own = each.layer._parameters
            each.layer._buffers.pop("weight", None)  # where torch leaves a weight of several tensors that require no gradient
            each.parameter.data = moved  # only now: torch may have written into this very parameter
            own["weight"] = each.parameter
            for key in [key for key in own if key != "weight"]:  # behind the weight, where they were
                own[key] = own.pop(key)
        self._over = verb

    def __rich__(self) -> Table:
        left = len(self.rows) - len(self.placed)
        title = f"{self.name}: {len(self.placed)} weights" + (f", {left} left" if left else "")
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for heading in ("layer", "kind", "rows × fan-in", "what became of it"):
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            size = f"{row.rows} × {row.fan_in}" if not row.reason else ""
            table.add_row(row.layer or "(the model)", row.kind, size, f"left: {row.reason}" if row.reason else row.words)
        return table

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def __repr__(self) -> str:
        return f"<Placement: {self.name} of {len(self.placed)} weights>"


def place(
    model: nn.Module,
    name: str,
    *,
    where: Where | None = None,
    data: Any = None,
    eps: float | None = None,
    convention: Convention | None = None,
    gain: float | None = None,
    learn_gain: bool | None = None,
    gamma: float | None = None,
    power_iterations: int | None = None,
    orthogonal_map: Map | None = None,
) -> Placement:
    """Normalize the weights of the linear and convolutional layers of `model`, in place; `normsmith.weights.catalog` has the names.

    `where(module, name)` selects layers. Left are weights that several layers share, that are parametrized already, and of which nothing
    would remain; the table says so. Options that the name does not have are errors. `data`, an example of the model's input, is for
    weight norm: lengths and biases are set so that every output channel has mean 0 and deviation 1 on it, layer after layer.

    Parameters stay the objects they are, so that an optimizer stays valid; but weight norm replaces each by two, and those that learn a
    gain add one: make the optimizer afterwards. `fold` and `undo` bring the parameters back.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"place expects a torch.nn.Module: got {type(model).__name__}; pass the model itself")
    entry = find(name)
    said = Settings(eps, convention, gain, learn_gain, gamma, power_iterations, orthogonal_map)
    _check(entry, said, data)
    found: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(m, Weighted) and (where is None or where(m, n))
    }
    if not found:
        raise ModelError(
            f"place expects linear or convolutional layers: got {type(model).__name__} without any that where() selects"
        )
    holders = _holders(model)
    reasons = {path: _why_left(layer, entry, holders) for path, layer in found.items()}
    if all(reasons.values()):
        path, reason = next(iter(reasons.items()))
        raise ModelError(f"place expects a weight that can be normalized: got {path!r}, but {reason}")
    return _all(model, found, reasons, entry, said, data)


def _all(
    model: nn.Module, found: dict[str, nn.Module], reasons: dict[str, str], entry: Entry, said: Settings, data: Any
) -> Placement:
    """Every layer without a reason against it; after an error the model is as it was."""
    rows: list[Row] = []
    placed: list[_Placed] = []
    try:
        for path, layer in found.items():
            if not reasons[path]:
                placed.append(_put(layer, path, entry, said))
            rows.append(_row(layer, path, reasons[path], placed))
        if data is not None:
            initialise(model, [one.layer for one in placed], data)
    except Exception:
        Placement(entry.name, (), placed).undo()
        raise
    return Placement(entry.name, tuple(rows), placed)


def _row(layer: nn.Module, path: str, reason: str, placed: list[_Placed]) -> Row:
    """The line of a layer, which is the last that was placed if there is no reason why it was not."""
    kind = parametrize.type_before_parametrizations(layer).__name__
    if reason:
        return Row(path, kind, reason=reason)
    value = placed[-1].value.double()  # half precision has no digits for an angle
    cut, tiny = Rows(layer, tuple(value.shape)), torch.finfo(value.dtype).tiny
    with torch.no_grad():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        new = weight.double()
        before, after = value.norm().clamp_min(tiny), new.norm().clamp_min(tiny)
        change, size = float((new - value).norm() / before), float(after / before)
        cosine = float((new / after * (value / before)).sum())
    return Row(
        path, kind, cut.number, cut.fan_in, change, size=size, turned=math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    )


def _put(layer: nn.Module, path: str, entry: Entry, said: Settings) -> _Placed:
    parameter = layer._parameters["weight"]
    assert parameter is not None
    value = parameter.detach().clone()
    bias: Tensor | None = getattr(layer, "bias", None)
    entry.put(layer, value, said)
    chain: Any = layer.parametrizations
    return _Placed(layer, path, parameter, value, None if bias is None else bias.detach().clone(), chain["weight"])


def _check(entry: Entry, said: Settings, data: Any) -> None:
    for field in fields(said):
        if getattr(said, field.name) is not None and field.name not in entry.options:
            raise OptionError(
                f"{entry.name} expects options among {', '.join(entry.options)}: got {field.name!r}; leave it out"
            )
    if data is not None and entry.name != "weight_norm":
        raise OptionError(f"{entry.name} expects no data, which sets the lengths of weight_norm: got some; leave it out")


def _holders(model: nn.Module) -> dict[nn.Parameter, int]:
    """How many modules hold each parameter."""
    found: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[parameter] = found.get(parameter, 0) + 1
    return found


def _why_left(layer: nn.Module, entry: Entry, holders: dict[nn.Parameter, int]) -> str:
    if parametrize.is_parametrized(layer, "weight"):
        return "its weight is parametrized already; fold that first"
    weight: nn.Parameter | None = layer._parameters.get("weight")
    if weight is None or isinstance(weight, UninitializedParameter):
        return "its weight is no parameter" + (", before the model has run once" if weight is not None else "")
    if holders[weight] > 1:
        return "other layers share its weight"
    if entry.centers and Rows(layer, tuple(weight.shape)).fan_in == 1:
        return "its rows are single numbers, of which nothing would remain"
    if entry.name == "spectral" and not bool(weight.detach().any()):
        return "its weight is zero, and so is its largest singular value"
    return ""

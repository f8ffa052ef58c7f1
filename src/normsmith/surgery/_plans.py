"""Which norms can go into which layers, and why others cannot: read off what one forward showed."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from normsmith.surgery._constant import TRANSPOSED, Affine, Weighted, affine_of, is_weighted, meddled, rest_of, why_fixed
from normsmith.surgery._neighbours import Call, Neighbours, User


@dataclass(frozen=True, eq=False)
class Plan:
    """One norm that goes into the layers before it, or into those after it."""

    norm: nn.Module
    layers: tuple[Weighted, ...]
    forward: bool  # into the layers after it
    affine: Affine
    rest: nn.Module  # what stays in the norm's place

    def weights(self, layer: Weighted) -> tuple[Tensor, Tensor]:
        """Weight and bias that the layer gets, as its weights are now."""
        return self.affine.before(layer) if self.forward else self.affine.after(layer)


class No(Exception):  # noqa: N818  (it is a reason, caught where it is asked for)
    """Why something cannot be folded."""


@dataclass(frozen=True, eq=False)
class Planner:
    """Plans for the norms of one model."""

    seen: Neighbours
    names: Mapping[nn.Module, str]
    held: dict[int, list[str]]  # the storages of the model

    def plan(self, norm: nn.Module) -> Plan | str:
        """What to do with a norm, or why nothing; needs the model in evaluation."""
        try:
            affine = self._affine(norm)
            try:
                return Plan(norm, self._before(norm, affine), False, affine, rest_of(norm))
            except No as before:
                try:
                    return Plan(norm, self._after(norm), True, affine, rest_of(norm))
                except No as after:
                    return f"{before}; {after}"
        except No as reason:
            return str(reason)

    def _affine(self, norm: nn.Module) -> Affine:
        calls = self.seen.of(norm)
        if not calls:
            raise No("the example does not reach it")
        if not all(call.alone for call in calls):
            raise No("it takes more than its input")
        if len({call.source for call in calls}) < len(calls):
            raise No("it reads one tensor twice")  # without it both would get the same tensor, which one of them may write into
        if any(call.dtypes[0] != call.dtypes[1] for call in calls):
            raise No(f"it turns {calls[0].dtypes[0]} into {calls[0].dtypes[1]}")
        if norm in self.seen.strays:
            raise No(f"its own tensors are also used by {self.seen.strays[norm]} outside of it")
        if meddled(norm):
            raise No(f"it {meddled(norm)}")
        affine = affine_of(norm, calls[0].shapes[0], calls[0].dtypes[0])
        if isinstance(affine, str):
            raise No(affine)
        return affine

    def _before(self, norm: nn.Module, affine: Affine) -> tuple[Weighted, ...]:
        """The layers whose outputs the norm reads, if it alone reads them and all it reads is theirs."""
        found: dict[Weighted, None] = {}
        for call in self.seen.of(norm):
            maker = self.seen.makers.get(call.source)
            if maker is None or not is_weighted(maker.layer) or norm not in self.seen.users.get(call.source, {}):
                origin = self._name(maker.layer) if maker else call.origin or "an input of the model"
                raise No(f"its input comes from {origin}")
            found[maker.layer] = None  # type: ignore[index]  # which is_weighted says
        for layer in found:
            self._check(layer)
            for made in self.seen.of(layer):
                self._goes_to(made, norm)
                self._lies(made.shapes[1], layer, f"{self._name(layer)} puts out")
        return tuple(found)

    def _after(self, norm: nn.Module) -> tuple[Weighted, ...]:
        """The layers that read the norm's outputs, if they alone read them and read nothing else, and pad with no zeros."""
        if not isinstance(rest_of(norm), nn.Identity):
            raise No("its activation comes before what follows it")
        found: dict[Weighted, None] = {}
        for call in self.seen.of(norm):
            users = self.seen.users.get(call.result, {})
            for user in users:
                if isinstance(user, str) or not is_weighted(user):
                    raise No(f"its output goes to {self._name(user)}")
                found[user] = None  # type: ignore[index]
            if not users or call.result in self.seen.kept:
                raise No("its output is returned or kept by the model")
        for layer in found:
            self._check(layer)
            if isinstance(layer, TRANSPOSED):
                raise No(f"{self._name(layer)} after it is transposed: fewer terms are added at its border")
            if _pads_zeros(layer):
                raise No(f"{self._name(layer)} after it pads with zeros, which the norm does not see")
            for call in self.seen.of(layer):
                maker = self.seen.makers.get(call.source)
                if maker is None or maker.layer is not norm:
                    raise No(f"{self._name(layer)} after it also runs on something else")
                self._lies(call.shapes[0], layer, f"{self._name(layer)} after it takes")
        return tuple(found)

    def _goes_to(self, made: Call, norm: nn.Module) -> None:
        """Raise unless nothing else reads what a layer puts out."""
        times = len(self.seen.of(made.layer))
        what = f"the output of {self._name(made.layer)}" if times == 1 else f"{self._name(made.layer)}, used {times} times,"
        others = [self._name(user) for user in self.seen.users.get(made.result, {}) if user is not norm]
        if others:
            raise No(f"{what} also goes to {', '.join(others)}")
        if made.result in self.seen.kept:
            raise No(f"{what} is returned or kept by the model")

    def _check(self, layer: nn.Module) -> None:
        """Raise unless the weights of a layer are its own, and are nothing but its weights."""
        fixed = why_fixed(layer, self.held)
        if fixed:
            raise No(f"{self._name(layer)} {fixed}")
        if layer in self.seen.strays:
            raise No(f"{self._name(layer)} lends its weight to {self.seen.strays[layer]} outside of it")

    def _lies(self, shape: tuple[int, ...], layer: nn.Module, what: str) -> None:
        """Raise unless the channels of a layer lie where those of a norm do, in dimension 1."""
        weight = layer._parameters["weight"]
        assert weight is not None
        if len(shape) != weight.dim():
            raise No(f"{what} a tensor of shape {tuple(shape)}, whose channels are not in dimension 1")

    def _name(self, user: User) -> str:
        return user if isinstance(user, str) else self.names.get(user, type(user).__name__)


def _pads_zeros(layer: Weighted) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return any(size > 0 for size in layer.padding if not isinstance(size, str))

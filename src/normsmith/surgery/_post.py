"""Placing post-GWNN: a layer writes fewer, whitened outputs, and the layer that reads it is fitted to them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from normsmith.errors import ModelError
from normsmith.natural.geometry import PLAIN, Geometry, Plain
from normsmith.natural.post import PostWhitenedLayer, PostWhitening
from normsmith.natural.spread import Spread
from normsmith.surgery import _coordinates as place
from normsmith.surgery import _optimizers
from normsmith.surgery._batches import batches_of
from normsmith.surgery._chains import BY_CHANNEL, Chain, chain
from normsmith.surgery._models import evaluating, places, run, run_batch
from normsmith.surgery._request import Request
from normsmith.surgery._trial import copied, differences, outputs, trial
from normsmith.surgery.conversion import Row
from normsmith.surgery.reparametrization import Reparametrization

_WATCHED = (*PLAIN, *place.BATCH_NORMS, *BY_CHANNEL, nn.Flatten)
_RIDGE = 1e-6  # in mean eigenvalues: what keeps the fit of the next layer from blowing up on activations that are constant


def place_post(request: Request) -> Reparametrization:
    """Do what a request says, or nothing."""
    options = cast(PostWhitening, request.options)
    request.refuse(loss=request.loss)
    chosen = place.choose(request, lambda module: isinstance(module, _WATCHED))
    order = list(chosen.neighbours.calls)
    chains: dict[str, Chain] = {}
    for name, layer in sorted(chosen.layers.items(), key=lambda item: order.index(item[1])):
        found = chain(layer, chosen.neighbours)
        reason = found if isinstance(found, str) else _cannot_change(found, request.model)
        if isinstance(found, Chain) and not reason:
            chains[name] = found
        else:
            chosen.left[name] = layer, reason
    if not chains:
        name, (_, reason) = next(iter(chosen.left.items()))
        raise ModelError(
            f"reparametrize to 'gwnn_post' expects layers that one other layer reads: got none, {name!r}, for one, {reason}"
        )
    return _Placing(request, options, chosen, chains).carry_out()


def _cannot_change(found: Chain, model: nn.Module) -> str:
    """Why the layer that reads another, or a norm between them, cannot be replaced; empty if it can."""
    for module in (*found.norms, found.last):
        why = place.reason_against(module, model)
        if why:
            return f"is read by a {type(module).__name__} that {why}"
    return ""


@dataclass(eq=False)
class _Placing:
    request: Request
    options: PostWhitening
    chosen: place.Chosen
    chains: dict[str, Chain]
    now: dict[str, nn.Module] = field(default_factory=dict)  # what stands at each name that was edited
    then: dict[str, nn.Module] = field(default_factory=dict)  # and what stood there

    def carry_out(self) -> Reparametrization:
        """Everything, undone again if something goes wrong."""
        request, model = self.request, self.request.model
        held = list(model.named_parameters())
        with trial(model, eager=False):
            before = outputs(run(model, copied(self.chosen.example)))
        reference = copy.deepcopy(model)
        names = {module: found[0] for module, found in places(model).items()}
        try:
            made = {name: self._whiten(name, found, names, reference) for name, found in self.chains.items()}
            with trial(model, eager=False):
                after = outputs(run(model, copied(self.chosen.example)))
        except BaseException:
            for name, old in self.then.items():
                place.swap(model, name, self.now[name], old).do()
            raise
        layers = list(made.values())
        for layer in layers:
            layer.plan(request.every, request.window, place.followers(request), request.process_group)
        swaps = [place.swap(model, name, old, self.now[name]) for name, old in self.then.items()]
        left = [row for row in place.left_rows(self.chosen) if row.layer not in self.then]
        handle = Reparametrization(model, [*map(self._row, self.then), *left], swaps, model)
        handle.output_error = differences(after, before).relative
        patches = [_optimizers.Patch(one, {p for swap in swaps for p in swap.old.parameters()}) for one in request.optimizers]
        place.patched(patches, held, model)
        handle.when_undone(*(patch.undo for patch in patches))
        handle.can(
            refresh=lambda data, batches: place.refresh(model, layers, data, batches, None),
            fold=partial(place.fold, model, layers),
        )
        return handle

    def _put(self, name: str, new: nn.Module) -> None:
        old = self.request.model.get_submodule(name)
        new.training = old.training
        self.then.setdefault(name, old)
        self.now[name] = new
        place.swap(self.request.model, name, old, new).do()

    def _whiten(self, name: str, found: Chain, names: dict[nn.Module, str], reference: nn.Module) -> PostWhitenedLayer:
        """One layer of a chain, and the fit of the layer that reads it."""
        model, request = self.request.model, self.request
        plain: Any = self.now.get(name, found.first)
        layer = PostWhitenedLayer(plain, self.options)
        layer.whitened_bias = None
        self._put(name, layer)
        for norm in found.norms:
            self._put(names[norm], nn.Identity())
        place.look(model, [layer], self.chosen.loader, request.batches, None)
        layer.refresh()
        layer.attend("never")
        into = names[found.last]
        self._put(into, _fitted(found.last, self._inputs(into, reference, model)))
        before = [
            self.now[other] for other, c in self.chains.items() if c.last is found.first and c.is_relu and other in self.now
        ]
        layer.before = [one for one in before if isinstance(one, PostWhitenedLayer)]
        return layer

    def _inputs(self, name: str, *models: nn.Module) -> Spread:
        """The spread of what a layer reads in the model as it was, and in the model as it is, side by side."""
        total: Spread | None = None
        geometry = Geometry.of(self.then.get(name, self.request.model.get_submodule(name)))  # type: ignore[arg-type]
        with evaluating(models[0]), evaluating(models[1]):
            for batch in batches_of(self.chosen.loader, self.request.batches, "fitting the next layer"):
                rows = [geometry.rows(_read_by(model.get_submodule(name), model, batch)) for model in models]
                new = Spread.of(torch.cat(rows, 1), 1)
                total = new if total is None else total.and_of(new)
        assert total is not None
        return total

    def _row(self, name: str) -> Row:
        old, new = self.then[name], self.now[name]
        if isinstance(new, PostWhitenedLayer):
            assert new.restoring is not None
            fresh = (f"{new.restoring.shape[1]} of {new.restoring.shape[2]} outputs", "norm")
            dropped = ("bias",) if getattr(old, "bias", None) is not None else ()
            return Row(name, type(old).__name__, type(new).__name__, ("weight",), dropped, fresh)
        if isinstance(new, nn.Identity):
            return Row(name, type(old).__name__, "Identity", (), tuple(key for key, _ in old.named_parameters()))
        return Row(name, type(old).__name__, type(new).__name__, (), (), ("weight fitted to the new inputs",))


class _ReadError(BaseException):
    """Ends a forward at the layer whose input is wanted; no model catches it by accident."""


@contextmanager
def _stopping_at(layer: nn.Module, found: list[Tensor]) -> Iterator[None]:
    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])
        raise _ReadError

    hook = layer.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _read_by(layer: nn.Module, model: nn.Module, batch: Any) -> Tensor:
    """What a layer reads in a forward."""
    found: list[Tensor] = []
    with _stopping_at(layer, found), suppress(_ReadError):
        run_batch(model, batch)
    return found[0]


def _fitted(layer: Plain, both: Spread) -> Plain:
    """The layer with a weight for other inputs, by which it gives, in mean square, what is nearest to what it gave for the old ones."""
    geometry, bias = Geometry.of(layer), layer.bias
    old = layer.weight.shape[1]
    second = both.covariance(centred=bias is not None)[0]
    cross, own = second[:old, old:], second[old:, old:]
    ridge = _RIDGE * own.diagonal().mean() + torch.finfo(own.dtype).tiny
    mixing = torch.linalg.solve(own + ridge * torch.eye(len(own), dtype=own.dtype, device=own.device), cross.T).T
    blocks = geometry.blocks(layer.weight.detach()).double()
    weight = geometry.unblocked(torch.einsum("goik,ij->gojk", blocks, mixing)).to(layer.weight.dtype)
    if bias is None:
        return geometry.plain(nn.Parameter(weight, layer.weight.requires_grad), None)
    missing = both.mean[:old] - mixing @ both.mean[old:]
    shifted = bias.detach().double() + torch.einsum("goik,i->go", blocks, missing).flatten()
    new = nn.Parameter(shifted.to(bias.dtype), bias.requires_grad)
    return geometry.plain(nn.Parameter(weight, layer.weight.requires_grad), new)

"""Placing layers that read whitened inputs: wnn, prong_plus, gwnn_pre and eigennet."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn

from normsmith.errors import ModelError, OptionError
from normsmith.methods._base import one_of
from normsmith.natural.eigen import Eigen, EigenLayer
from normsmith.natural.spread import Spread
from normsmith.natural.whitened import WhitenedLayer, Whitening
from normsmith.surgery import _coordinates as place
from normsmith.surgery import _optimizers
from normsmith.surgery._models import run
from normsmith.surgery._request import Request
from normsmith.surgery._trial import copied, differences, is_rounding, outputs, trial
from normsmith.surgery.conversion import Row, Swap
from normsmith.surgery.reparametrization import Reparametrization


@dataclass(frozen=True)
class Normed(Whitening):
    """How inputs are whitened, and where a batch norm belongs behind."""

    norm: Literal["auto", "all", "none"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reparametrize", "norm", self.norm, ("auto", "all", "none"))


@dataclass(frozen=True)
class Truncated(Normed):
    """As that, with fewer directions."""

    energy: float = 0.95


def place_natural(request: Request) -> Reparametrization:
    """Do what a request says, or nothing."""
    options = cast(Whitening, request.options)
    if isinstance(options, Eigen) == (request.loss is None):
        raise OptionError(
            f"reparametrize expects loss(output, target) for 'eigennet', and for it alone: got {request.loss!r} for {request.name!r}"
        )
    chosen = place.choose(request, lambda module: isinstance(module, place.BATCH_NORMS))
    model = request.model
    layers = {name: _layer(name, layer, options, chosen, request) for name, layer in chosen.layers.items()}
    swaps = [place.swap(model, name, chosen.layers[name], new.layer) for name, new in layers.items()]
    with trial(model, eager=False):
        before = outputs(run(model, copied(chosen.example)))
    return _Placing(request, options, chosen, layers, swaps).carry_out(before)


@dataclass(eq=False)
class _New:
    layer: WhitenedLayer
    takes_norm: bool
    outputs: Spread | None = field(default=None)

    @contextmanager
    def watching_outputs(self) -> Iterator[None]:
        """In this block the moments of the outputs, which a norm will need, are taken down."""

        def take(module: Any, args: Any, output: Tensor) -> None:
            rows = self.layer.geometry.rows(output)
            new = Spread.of(rows, rows.shape[1])
            self.outputs = new if self.outputs is None else self.outputs.and_of(new)

        hook = self.layer.register_forward_hook(take) if self.takes_norm else None
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()


def _layer(name: str, layer: Any, options: Whitening, chosen: place.Chosen, request: Request) -> _New:
    """The layer that is to take the place of a plain one, still in the plain one's coordinates."""
    behind = place.normed_behind(layer, chosen.neighbours)
    wanted = options.norm if isinstance(options, Normed) else "none"
    takes = wanted == "all" or (wanted == "auto" and not behind and not place.is_last(layer, chosen.neighbours))
    made = (
        EigenLayer(layer, options, normed=behind)
        if isinstance(options, Eigen)
        else WhitenedLayer(layer, options, normed=behind)
    )
    made.method = request.name
    made.followers = place.followers(request)
    if takes:
        made.expect_norm()
    return _New(made, takes)


@dataclass(eq=False)
class _Placing:
    request: Request
    options: Whitening
    chosen: place.Chosen
    layers: dict[str, _New]
    swaps: list[Swap]

    def carry_out(self, before: list[Tensor]) -> Reparametrization:
        """Everything, undone again if the model's output is not what it was."""
        request, model = self.request, self.request.model
        held = list(model.named_parameters())
        touched = {p for swap in self.swaps for p in swap.old.parameters()}
        patches = [_optimizers.Patch(one, touched) for one in request.optimizers]
        result = model if self.swaps[0].slots else self.swaps[0].new
        handle = Reparametrization(result, [], self.swaps, model)
        handle.when_undone(*(patch.undo for patch in patches))
        for swap in self.swaps:
            swap.do()
        try:
            self._settle(result)
            self._check(handle, before)
        except BaseException:
            handle.undo()
            raise
        place.patched(patches, held, result)
        for new in self.layers.values():
            new.layer.plan(request.every, request.window, place.followers(request), request.process_group)
        layers = [new.layer for new in self.layers.values()]
        handle.rows = (*map(self._row, self.layers), *place.left_rows(self.chosen))
        handle.can(
            refresh=lambda data, batches: place.refresh(result, layers, data, batches, request.loss),
            fold=partial(place.fold, result, layers),
        )
        return handle

    def _settle(self, model: nn.Module) -> None:
        layers = [new.layer for new in self.layers.values()]
        with ExitStack() as stack:
            for new in self.layers.values():
                stack.enter_context(new.watching_outputs())
            place.look(model, layers, self.chosen.loader, self.request.batches, self.request.loss)
        for new in self.layers.values():
            new.layer.refresh()
            if new.takes_norm:
                assert new.outputs is not None
                new.layer.take_norm(new.outputs.mean, new.outputs.covariance().flatten())

    def _check(self, handle: Reparametrization, before: list[Tensor]) -> None:
        """Measure how far the model's output has moved, which where nothing was left out must be by rounding."""
        with trial(handle.model, eager=False):
            after = outputs(run(handle.model, copied(self.chosen.example)))
        error = differences(after, before)
        handle.output_error = error.relative
        full = all(_directions(new.layer)[0] == _directions(new.layer)[1] for new in self.layers.values())
        if full and not is_rounding(error, after):
            raise ModelError(
                f"reparametrize expects a model whose output stays what it is: got one that moved by {error.relative:.1e}, relative; it "
                "may not repeat its own output, or read a layer's weight elsewhere: leave that layer with where="
            )

    def _row(self, name: str) -> Row:
        new = self.layers[name]
        old = self.chosen.layers[name]
        kept, channels = _directions(new.layer)
        fresh = [f"{kept} of {channels} directions", *(["norm"] if new.takes_norm else [])]
        fresh += ["gradients whitened"] if isinstance(new.layer, EigenLayer) else []
        carried = [key for key, there in (("weight", True), ("bias", old.bias is not None)) if there]
        return Row(name, type(old).__name__, type(new.layer).__name__, tuple(carried), (), tuple(fresh))


def _directions(layer: WhitenedLayer) -> tuple[int, int]:
    assert layer.whitening is not None
    return layer.whitening.shape[1], layer.whitening.shape[2]

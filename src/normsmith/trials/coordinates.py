"""What a recipe says of weights and gradients: `Coordinates`, layers placed by `ns.reparametrize`; and `ns.normalize_gradients`."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.methods._specs import among, written
from normsmith.natural.layer import NaturalLayer
from normsmith.natural.states import Followers, Moments
from normsmith.surgery._batches import check_loader
from normsmith.surgery._request import Loss
from normsmith.surgery.conditioned import conditioned, conditions_of
from normsmith.surgery.reparametrize import NATURAL, check_schedule, read, reparametrize
from normsmith.weights import gradients

_REFRESHES = ("every", "window", "batches", "moments")  # what only layers have that depend on data
Batches = Iterable[tuple[Tensor, ...]]  # of samples, their labels, and whatever else an algorithm wants


@dataclass(frozen=True)
class Coordinates:
    """A way to place layers, as a recipe writes it: "wnn:eps=0.1,every=50"; `every=none` leaves coordinates as they were placed."""

    name: str
    options: dict[str, Any]  # those of `ns.reparametrize`
    every: int | None = 100
    window: int = 10
    batches: int = 10
    moments: Moments = "reset"

    @classmethod
    def of(cls, text: str) -> "Coordinates":
        """Read and checked, but for what only a model can tell."""
        name, options = written(text)
        natural = name in NATURAL
        refreshes = {key: options.pop(key) for key in _REFRESHES if natural and key in options}
        if natural:
            among(options, [*NATURAL[name].given, *_REFRESHES], name)
        read(name, options)
        if options.get("scale") == "fisher":
            raise OptionError(
                "reparametrize expects eigennet with scale=mean in a recipe: got scale=fisher, for which a loss is the mean over the "
                "samples of a forward, where a trial weighs those of parts and of ranks; leave it out"
            )
        if refreshes.get("every") == "none":
            refreshes["every"] = None
        found = cls(name, options, **refreshes) if natural else cls(name, options, every=None)
        check_schedule(found.every, found.window, found.moments)
        check_loader((), found.batches, "reparametrize")
        return found

    def __str__(self) -> str:
        """The same text for the same coordinates, however they were written."""
        settings = {
            "every": self.every,
            "window": self.window,
            "batches": self.batches,
            "moments": self.moments,
            **self.options,
        }
        return f"{self.name}:" + ",".join(f"{key}={settings[key]!r}" for key in sorted(settings))

    def place(self, model: nn.Module, batches: Batches, part: int, loss: Loss) -> None:
        """Place layers in a model, by the first batches of its training where that depends on data; statistics are of `part` samples."""
        spec = f"{self.name}:" + ",".join(f"{key}={value!r}" for key, value in self.options.items())
        if self.name not in NATURAL:
            reparametrize(model, spec)
            return
        pieces = [
            piece
            for x, y, *_ in islice(batches, self.batches)
            for piece in zip(torch.split(x, part), torch.split(y, part), strict=True)
        ]
        with _told(model, len(pieces[0][0])):
            reparametrize(
                model,
                spec,
                data=pieces,
                every=self.every,
                window=self.window,
                loss=loss if self.name == "eigennet" else None,
            )

    def follow(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Have an optimizer that was made after the layers follow their refreshes."""
        for layer in model.modules():
            if isinstance(layer, NaturalLayer):
                layer.followers = Followers([optimizer], self.moments)


@contextlib.contextmanager
def _told(model: nn.Module, samples: int) -> Iterator[None]:
    """Within it normalizers that want a condition are told that all samples are of the first domain."""
    device = next(model.parameters()).device
    with (
        conditioned(model, torch.zeros(samples, dtype=torch.long, device=device))
        if conditions_of(model)
        else contextlib.nullcontext()
    ):
        yield


def gradients_of(text: str) -> tuple[str, dict[str, Any]]:
    """A way to normalize gradients and its options, checked."""
    name, options = written(text)
    one_of("normalize_gradients", "how", name, tuple(gradients.OPTIONS))
    among(options, [option for option in gradients.OPTIONS[name] if option != "model"], name)
    gradients.check(name, **options)
    return name, options


def normalize(optimizer: Optimizer, text: str, model: nn.Module) -> None:
    """Normalize the gradients of an optimizer as a recipe says."""
    how, options = gradients_of(text)
    if "model" in gradients.OPTIONS[how]:
        options["model"] = model
    gradients.normalize_gradients(optimizer, how, **options)  # type: ignore[arg-type]

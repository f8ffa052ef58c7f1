"""`reparametrize`: the layers of a model in coordinates in which a gradient step goes further."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from normsmith.errors import OptionError, UnknownMethodError
from normsmith.methods._base import one_of
from normsmith.methods._specs import among, written
from normsmith.natural.eigen import Eigen
from normsmith.natural.post import PostWhitening
from normsmith.natural.states import Moments
from normsmith.natural.whitened import Whitening
from normsmith.surgery import _optimizers
from normsmith.surgery._choice import Where
from normsmith.surgery._models import refuse_wrapped
from normsmith.surgery._natural import Normed, Truncated, place_natural
from normsmith.surgery._post import place_post
from normsmith.surgery._request import Loss, Request
from normsmith.surgery._weights import place_weights
from normsmith.surgery.reparametrization import Reparametrization
from normsmith.weights.catalog import CATALOG, Settings


@dataclass(frozen=True)
class Kind:
    """What places it, the dataclass of its options, and which of those may be set."""

    place: Callable[[Request], Reparametrization]
    options: type[Any]
    given: tuple[str, ...]


NATURAL = {
    "wnn": Kind(place_natural, Whitening, ("eps", "basis")),
    "prong_plus": Kind(place_natural, Normed, ("eps", "basis", "norm")),
    "gwnn_pre": Kind(place_natural, Truncated, ("eps", "basis", "energy", "rank", "norm")),
    "gwnn_post": Kind(place_post, PostWhitening, ("eps", "energy", "rank", "covariance")),
    "eigennet": Kind(place_natural, Eigen, ("eps", "energy", "rank", "clip", "scale")),
}
KINDS = {**NATURAL, **{name: Kind(place_weights, Settings, entry.options) for name, entry in CATALOG.items()}}


def reparametrize(
    model: nn.Module,
    to: str,
    *,
    data: Any = None,
    batches: int | None = None,
    every: int | None = None,
    window: int = 10,
    where: Where | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    moments: Moments = "reset",
    loss: Loss | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Reparametrization:
    """Put the linear and convolutional layers of `model` into other coordinates, in place, and return a handle; on an error nothing is.

    - `to`: "wnn", "prong_plus", "gwnn_pre", "gwnn_post" or "eigennet", with options as in "gwnn_pre:energy=0.9,eps=1e-2"; docs/natural.md.
      Or weights that are normalized: "weight_norm", "centered_weight_norm", "weight_standardization", "scaled_weight_standardization",
      "spectral" or "orthogonal"; docs/weights.md. Of the arguments below they take `where`, `optimizer`, and weight norm `data`.
    - `data`: a tensor; a batch, (input, target, ...) or a mapping of arguments; or a loader of those, of which `batches` are taken, or all.
      The model runs on it in the modes it is in, as the coordinates are to fit what it trains on; buffers and random state are put back.
    - `every`: refresh after so many optimizer steps, counted by `ns.step_schedules`, by what is seen in training in the `window`
      steps before. None leaves it to `handle.refresh(data)`.
    - `where(module, name)`: only layers for which it is true.
    - `optimizer`: its groups are kept right. At every refresh its momenta of the layers are dropped, or with `moments="transform"` carried
      over: velocities and averages of gradients exactly, averages of squared gradients as if entries were independent.
    - `loss(output, target)`: for "eigennet", which whitens gradients; the target is what follows the input in a batch.
    - `process_group`: whose ranks refresh by all they have seen together; the default group if there is one.

    Layers whose weight is tied, shared or parametrized, and those that the first batch does not reach, are left, with the reason.
    """
    refuse_wrapped(model, "reparametrize")
    name, options = read(*written(to))
    check_schedule(every, window, moments)
    optimizers = _optimizers.check(optimizer, model, "reparametrize")
    request = Request(model, name, options, where, optimizers, data, batches, every, window, loss, moments, process_group)
    return KINDS[name].place(request)


def read(name: str, options: dict[str, Any]) -> tuple[str, Any]:
    """A name that is known, and its options as the dataclass that they belong to."""
    if name not in KINDS:
        near = difflib.get_close_matches(name.lower(), KINDS, n=2, cutoff=0.5)
        advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "choose one of these"
        raise UnknownMethodError(f"reparametrize expects one of {', '.join(KINDS)}: got {name!r}; {advice}")
    kind = KINDS[name]
    among(options, list(kind.given), name)
    try:
        return name, kind.options(**options)
    except TypeError:  # a word that was to be compared with a number
        raise OptionError(
            f"reparametrize expects numbers behind {name!r}, but for what docs/natural.md names by words: got {options!r}; leave them out "
            "for the usual ones"
        ) from None


def check_schedule(every: int | None, window: int, moments: Moments) -> None:
    """Raise unless refreshes can be so."""
    for key, value in (("every", every), ("window", window)):
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"reparametrize expects {key}, a number of optimizer steps, as a positive integer: got {value!r}")
    one_of("reparametrize", "moments", moments, ("reset", "transform"))

"""The catalog: every method by name, with what is known of it before it is imported. This file does not import torch.

To add a method: its room `methods/<name>.py`, its oracle `tests/oracles/<name>.py`, and a line here. The public name, the tests, the
card, `normsmith list`, and the benchmark row follow.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from normsmith.errors import UnknownMethodError
from normsmith.methods._specs import among, written

# What may be done to the input without changing the output, up to eps: x -> a x ("scale", a > 0) or x -> x + b ("shift"), with one
# number for each channel, each sample, or each cell (sample and channel). Declared here, tested in both directions.
CELL = frozenset({"cell scale", "cell shift", "sample scale", "sample shift", "channel scale", "channel shift"})
SAMPLE = frozenset({"sample scale", "sample shift"})
CHANNEL = frozenset({"channel scale", "channel shift"})


@dataclass(frozen=True)
class Entry:
    """One method: its stem, which names room, oracle and card; its class; its traits."""

    name: str
    class_name: str
    summary: str
    invariances: frozenset[str]
    batch_dependent: bool = False  # in training, a sample's output depends on the other samples
    running: bool = False  # can keep running statistics
    family: str = "classical"
    affine: bool = True  # the output is an affine map of x, whose statistics are all that is kept beside x
    ordered: bool = False  # in training, the order of the samples matters
    random: bool = False  # in training, the output is random
    fitted: bool = False  # in training, something is fitted to the batch: parts of it do not add up to the one batch they are
    across: bool = False  # in training, an output depends on the other channels at its own position
    detached: bool = False  # in training, something made of x is a constant for the gradient, which is then not the derivative

    def load(self) -> type[Any]:
        """The class; imports its room."""
        cls: type[Any] = getattr(importlib.import_module(f"normsmith.methods.{self.name}"), self.class_name)
        return cls

    def card(self) -> str:
        """The docstring of the room: what it computes, where it differs, what it costs, when it fails, where it is from."""
        return inspect.cleandoc(importlib.import_module(f"normsmith.methods.{self.name}").__doc__ or "")


_SHIFT = frozenset({"channel shift"})
_of_batch = partial(Entry, batch_dependent=True, running=True)
_whitens = partial(_of_batch, across=True, family="whitening")
_ENTRIES = (
    Entry("batch", "BatchNorm", "statistics per channel, over the batch", CHANNEL, batch_dependent=True, running=True),
    Entry("layer", "LayerNorm", "statistics per sample, over channels and positions", SAMPLE),
    Entry("instance", "InstanceNorm", "statistics per sample and channel", CELL, running=True),
    Entry("group", "GroupNorm", "statistics per sample and group of channels", SAMPLE),
    Entry("rms", "RMSNorm", "divided by the sample's root mean square, nothing subtracted", frozenset({"sample scale"})),
    Entry(
        "position",
        "PositionNorm",
        "statistics per position, over channels; pixel norm as an option",
        SAMPLE,
        affine=False,  # it is, but its cells are positions
        across=True,
    ),
    Entry(
        "local_response",
        "LocalResponseNorm",
        "divided by the mean square of adjacent channels",
        frozenset(),
        affine=False,
        across=True,
    ),
    _of_batch("ghost", "GhostNorm", "batch norm over small parts of the batch", CHANNEL, ordered=True, family="batch"),
    _of_batch(
        "renorm",
        "BatchRenorm",
        "batch norm corrected towards its running statistics",
        frozenset(),
        detached=True,
        family="batch",
    ),
    Entry("frozen", "FrozenNorm", "batch norm with constant statistics", frozenset(), running=True, family="batch"),
    _of_batch("noisy", "NoisyNorm", "batch norm whose output is shaken", CHANNEL, random=True, affine=False, family="batch"),
    _of_batch(
        "population",
        "PopulationNorm",
        "running statistics as constants, in training too",
        CHANNEL,
        detached=True,
        family="batch",
    ),
    _of_batch("ibn", "IBN", "instance norm of the first channels, batch norm of the rest", CHANNEL, family="mixed"),
    _of_batch("batch_instance", "BatchInstanceNorm", "batch and instance norm in learned shares", CHANNEL, family="mixed"),
    _of_batch(
        "switchable",
        "SwitchableNorm",
        "a learned blend of the statistics of instance, layer and batch",
        frozenset(),
        family="mixed",
    ),
    _of_batch(
        "sparse_switchable",
        "SparseSwitchableNorm",
        "a blend that becomes a choice in the course of training",
        frozenset(),
        family="mixed",
    ),
    _of_batch("filtered", "FilteredNorm", "batch norm without the outliers", CHANNEL, family="filtered"),
    Entry("filtered_group", "FilteredGroupNorm", "group norm without the outliers", SAMPLE, family="filtered"),
    _of_batch(
        "mixture",
        "MixtureNorm",
        "each element normalized by the components of a Gaussian mixture, fitted by EM in training",
        CHANNEL,
        fitted=True,
        across=True,
        detached=True,
        family="mixture",
    ),
    _of_batch(
        "uan",
        "UAN",
        "K learned clusters per channel, each element normalized by those it belongs to",
        frozenset(),
        family="mixture",
    ),
    _of_batch("mode", "ModeNorm", "K batch norms, blended per sample by a learned gate", frozenset(), family="mixture"),
    _of_batch(
        "kalman", "KalmanNorm", "batch statistics drawn to a prediction from the layer before", CHANNEL, family="chained"
    ),
    Entry(
        "kalman_group",
        "KalmanGroupNorm",
        "group statistics drawn to a prediction from the layer before",
        SAMPLE,
        family="chained",
    ),
    Entry(
        "filter_response",
        "FilterResponseNorm",
        "each channel of a sample divided by its root mean square, then a learned threshold",
        frozenset({"cell scale", "sample scale", "channel scale"}),
        family="activation",
    ),
    Entry(
        "evo_s0", "EvoNormS0", "swish over the deviation of a group of channels", frozenset(), affine=False, family="activation"
    ),
    _of_batch(
        "evo_b0",
        "EvoNormB0",
        "x over the larger of two deviations, of the batch and of the sample",
        frozenset({"channel scale"}),
        affine=False,
        family="activation",
    ),
    Entry(
        "dynamic_tanh",
        "DynamicTanh",
        "tanh with a learned slope, no statistics",
        frozenset(),
        affine=False,
        family="activation",
    ),
    Entry("adain", "AdaIN", "takes the channel statistics of a style", CELL, family="adaptive"),
    _of_batch(
        "conditional",
        "ConditionalNorm",
        "batch norm whose affine map, or statistics too, depend on a condition",
        CHANNEL,
        family="adaptive",
    ),
    _of_batch(
        "context",
        "ContextNorm",
        "statistics of the samples of one context, or learned tables instead of them",
        CHANNEL,
        family="adaptive",
    ),
    _of_batch("centering", "Centering", "the mean of each channel taken away", _SHIFT, family="whitening"),
    _of_batch(
        "scaling",
        "Scaling",
        "each channel divided by its deviation, its mean kept",
        frozenset({"channel scale"}),
        family="whitening",
    ),
    _whitens("decorrelating", "Decorrelating", "channels turned into their principal axes", _SHIFT),
    _whitens("pca_whitening", "PCAWhitening", "principal axes, each brought to variance 1", _SHIFT),
    _whitens("zca_whitening", "ZCAWhitening", "covariance I by the matrix that moves channels least", _SHIFT),
    _whitens("cholesky_whitening", "CholeskyWhitening", "each channel without what those before it explain", CHANNEL),
    _whitens("iterative_whitening", "IterativeWhitening", "ZCA whitening by a few Newton-Schulz steps", _SHIFT),
    _whitens("switchable_whitening", "SwitchableWhitening", "a learned blend of covariances and variances", frozenset()),
)
CATALOG = {entry.name: entry for entry in _ENTRIES}


def catalog() -> dict[str, Entry]:
    """Every method by name."""
    return dict(CATALOG)


def find(name: str) -> Entry:
    """The entry of that name, or an error that suggests the nearest."""
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower().removesuffix("norm").strip("_ "), CATALOG, n=2, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "the command `normsmith list` lists them"
    raise UnknownMethodError(f"the catalog expects the name of a method: got {name!r}; {advice}")


def make(method: str | type[Any] | Callable[..., Any], num_features: int, **options: Any) -> Any:
    """A normalizer from a catalog name, a class, or any factory called with `num_features` and the options.

    A name may carry options of its own: `make("group:num_groups=8,eps=1e-3", 64)`.
    """
    if not isinstance(method, str):
        return method(num_features, **options)
    entry, written = parse(method)
    cls = entry.load()
    return cls(num_features, **_checked({**written, **options}, cls))


def parse(method: str) -> tuple[Entry, dict[str, Any]]:
    """The entry and the options of what `make` takes: "group:num_groups=8,eps=1e-3"."""
    name, found = written(method)
    entry = find(name)
    return entry, _checked(found, entry.load()) if found else {}


def _checked(options: dict[str, Any], cls: type[Any]) -> dict[str, Any]:
    return among(options, [name for name in inspect.signature(cls).parameters if name != "num_features"], cls.__name__)

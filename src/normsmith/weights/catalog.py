"""The ways to normalize weights, by name: what each computes, its options, and how it is put on a layer."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize

from normsmith.errors import OptionError
from normsmith.methods._base import one_of
from normsmith.weights import parametrizations as ours
from normsmith.weights._rows import TRANSPOSED, Rows

_WHO = "a normalized weight"
Map = Literal["polar", "matrix_exp", "cayley", "householder"]


@dataclass(frozen=True)
class Settings:
    """The options of all of them; None where the caller did not say, and the default is that of the name."""

    eps: float | None = None
    convention: ours.Convention | None = None
    gain: float | None = None
    learn_gain: bool | None = None
    gamma: float | None = None
    power_iterations: int | None = None
    orthogonal_map: Map | None = None

    def __post_init__(self) -> None:
        for key in ("eps", "gain", "gamma"):
            value = getattr(self, key)
            if value is not None and not (type(value) in {int, float} and math.isfinite(value)):
                raise OptionError(f"{_WHO} expects {key} as a number: got {value!r}; leave it out for the usual one")
        if self.eps is not None and self.eps <= 0:
            raise OptionError(f"{_WHO} expects eps above zero: got {self.eps!r}; leave it out for the usual one")
        if self.power_iterations is not None and (type(self.power_iterations) is not int or self.power_iterations < 1):
            raise OptionError(f"{_WHO} expects power_iterations as a positive integer: got {self.power_iterations!r}; try 1")
        if self.learn_gain is not None:
            one_of(_WHO, "learn_gain", self.learn_gain, (True, False))
        if self.convention is not None:
            one_of(_WHO, "convention", self.convention, get_args(ours.Convention))
        if self.orthogonal_map is not None:
            one_of(_WHO, "orthogonal_map", self.orthogonal_map, get_args(Map))


@dataclass(frozen=True)
class Entry:
    """One way: its name, a summary, the options it has, how it is put on a layer, and whether a row of a single number makes no sense."""

    name: str
    summary: str
    options: tuple[str, ...]
    put: Callable[[nn.Module, Tensor, Settings], None]
    centers: bool = False


def _register(layer: nn.Module, parametrization: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", parametrization)


def _weight_norm(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    _register(layer, ours.WeightNorm(Rows(layer, tuple(weight.shape)), _or(said.eps, 1e-12)))


def _centered(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    rows, gain = Rows(layer, tuple(weight.shape)), _or(said.gain, math.sqrt(2))
    _register(layer, ours.CenteredWeightNorm(rows, _or(said.eps, 1e-5), gain, bool(said.learn_gain), weight))


def _standardized(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    convention: ours.Convention = said.convention or "readme"
    eps = _or(said.eps, 1e-6 if convention == "timm" else 1e-5)
    _register(layer, ours.WeightStandardization(Rows(layer, tuple(weight.shape)), eps, convention))


def _scaled(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    rows = Rows(layer, tuple(weight.shape))
    gain, gamma = _or(said.gain, 1.0), _or(said.gamma, 1.0)
    _register(layer, ours.ScaledWeightStandardization(rows, _or(said.eps, 1e-6), gain, gamma, weight))


def _spectral(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    iterations = 1 if said.power_iterations is None else said.power_iterations
    dim = 1 if isinstance(layer, TRANSPOSED) else 0
    torchs.spectral_norm(layer, "weight", iterations, _or(said.eps, 1e-12), dim)


def _orthogonal(layer: nn.Module, weight: Tensor, said: Settings) -> None:
    chosen = said.orthogonal_map or "polar"
    if chosen == "polar":
        _register(layer, ours.Orthogonal(Rows(layer, tuple(weight.shape)), _or(said.eps, 1e-12)))
    elif weight.dim() == 2:
        torchs.orthogonal(layer, "weight", chosen)
    else:
        raise OptionError(
            f"orthogonal expects orthogonal_map='polar' for convolutions: got {chosen!r}, torch's, which takes each kernel for a matrix"
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


_ENTRIES = (
    Entry("weight_norm", "a length times a direction, for each row", ("eps",), _weight_norm),
    Entry("centered_weight_norm", "rows of mean 0 and one length", ("eps", "gain", "learn_gain"), _centered, centers=True),
    Entry("weight_standardization", "rows of mean 0 and variance 1", ("eps", "convention"), _standardized, centers=True),
    Entry(
        "scaled_weight_standardization",
        "the same over sqrt(fan-in), with a learned gain",
        ("eps", "gain", "gamma"),
        _scaled,
        centers=True,
    ),
    Entry("spectral", "divided by the largest singular value, torch's", ("eps", "power_iterations"), _spectral),
    Entry("orthogonal", "orthonormal rows", ("eps", "orthogonal_map"), _orthogonal),
)
CATALOG = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Entry:
    """The entry of that name, or an error that suggests the nearest."""
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), CATALOG, n=1, cutoff=0.4)
    advice = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(CATALOG)}"
    raise OptionError(f"weights expect the name of a way to normalize them: got {name!r}; {advice}")


def catalog() -> dict[str, Entry]:
    """Every way by name."""
    return dict(CATALOG)

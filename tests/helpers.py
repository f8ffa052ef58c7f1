"""What all tests share: one comparison that asserts, the backends, and the cases of the catalog."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import normsmith as ns

CHANNELS = 12
BACKENDS = ("auto", "torch", "cpu", "reference")
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def assert_same(actual: Tensor, expected: Tensor, what: str = "value", tolerance: float | None = None) -> None:
    """Equal up to the precision of the less precise type, relative to the largest expected value; same shape."""
    allowed = tolerance or max(_TOLERANCE[actual.dtype], _TOLERANCE[expected.dtype])
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    torch.testing.assert_close(
        actual.double(),
        expected.double(),
        rtol=allowed,
        atol=allowed * max(1.0, float(expected.detach().double().abs().max()) if expected.numel() else 0.0),
        equal_nan=True,
        msg=lambda message: f"{what}: {message}",
    )


@dataclass(frozen=True)
class Case:
    """A catalog entry with options to test."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name + "".join(f"-{key}={value}" for key, value in self.options.items())

    @property
    def entry(self) -> ns.Entry:
        return ns.catalog()[self.name]

    def make(self, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
        """The layer, with parameters and buffers moved away from ones and zeros."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)  # some draw their parameters
            layer = ns.make(self.name, CHANNELS, dtype=dtype, **self.options, **more)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in layer.state_dict().values():
                if tensor.is_floating_point() and not tensor.is_meta:
                    tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) * 0.5)
        if self.entry.random:
            layer.register_forward_pre_hook(_seed)
        return layer


def _seed(layer: Any = None, *_: object) -> None:
    """So that a random layer repeats itself."""
    if layer is None or layer.training:  # torch.export cannot see it, and in evaluation nothing is drawn
        torch.manual_seed(0)


def floating(extra: dict[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The arguments with those that are numbers, not indices, changed."""
    return {key: change(value) if value.is_floating_point() else value for key, value in extra.items()}


def oracle_of(name: str) -> Any:
    return importlib.import_module(f"oracles.{name}")


def by_oracle(layer: Any, name: str, x: Tensor, tensors: dict[str, Tensor | None], extra: dict[str, Tensor]) -> Any:
    """The oracle's output and new buffers for the tensors of a layer."""
    _seed()
    return oracle_of(name).forward(x, layer.training, **tensors, **oracle_options(layer), **extra)


def oracle_options(layer: Any) -> dict[str, Any]:
    return {key: value for key, value in layer.options().items() if key not in {"bias", "device", "dtype"}}


def tensors_of(layer: Any) -> dict[str, Tensor | None]:
    """All parameters and buffers by name, None where the layer has a slot but no tensor; copies that require gradients as they do."""
    slots = {**layer._parameters, **layer._buffers}
    return {k: v if v is None else v.detach().clone().requires_grad_(v.requires_grad) for k, v in slots.items()}


# Methods that take nothing but x, so that a layer can stand in for any other.
ONE_INPUT = [name for name in ns.catalog() if not ns.make(name, CHANNELS).example_inputs(torch.zeros(1, CHANNELS, 2))]
CASES = [Case(name) for name in ns.catalog()]


def twins_of(case: Case) -> list[int]:
    """The numbers of spatial dimensions for which torch has the layer."""
    layer = ns.make(case.name, CHANNELS, **case.options)
    return [dims for dims in range(4) if layer.torch_twin(dims) is not None]


def backends_of(case: Case) -> tuple[str, ...]:
    """The backends that differ for it: those of torch's operator only where torch has it."""
    return BACKENDS if {0, 2}.intersection(twins_of(case)) else ("cpu", "reference")


def with_backends(cases: list[Case]) -> list[tuple[Case, str]]:
    return [(case, backend) for case in cases for backend in backends_of(case)]


VARIANTS = CASES + [Case(name, options) for name in ns.catalog() for options in oracle_of(name).VARIANTS]

SHAPES = [(5, CHANNELS), (4, CHANNELS, 7), (3, CHANNELS, 5, 6), (2, CHANNELS, 3, 4, 5)]
ODD_SHAPES = [(7, CHANNELS, 1, 1), (1, CHANNELS, 9, 1), (2, CHANNELS, 63), (1, CHANNELS, 2), (6, CHANNELS, 7, 7)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def example(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Data with unlike channels and samples, so that no wrong axis goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    across = [1, -1] + [1] * (len(shape) - 2)
    x = x * torch.linspace(0.5, 2, shape[1], dtype=torch.float64).view(across) + torch.linspace(-1, 3, shape[1]).view(across)
    return (x + torch.arange(shape[0], dtype=torch.float64).view([-1] + [1] * (len(shape) - 1))).to(dtype)


def accepts(layer: Any, x: Tensor) -> bool:
    """Whether the layer takes an input of this shape: a statistic of a single element is an error or a warning."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            layer(x, **layer.example_inputs(x))
    except (ns.TooFewValuesError, UserWarning):
        return False
    return True


def is_singular(case: Case, layer: Any, x: Tensor) -> bool:
    """Whether a covariance of this many vectors is singular: then its directions are those of rounding, and so are gradients."""
    by_covariance = case.entry.across and case.entry.batch_dependent and not case.entry.fitted
    return by_covariance and x.numel() // x.shape[1] <= CHANNELS // layer.groups

"""What is timed: shapes, layouts, modes, and for each method its contestants as functions of no arguments."""

import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normsmith.bench.rivals import rivals
from normsmith.errors import OptionError
from normsmith.kernels.choose import backend
from normsmith.methods.catalog import find, make

SHAPES = [(32, 64, 56, 56), (128, 256, 8, 8), (8, 256, 32, 32), (8, 64, 8, 8), (2, 32, 32, 32, 32), (256, 512)]
# On a GPU: the stages of ResNet-50 at two batch sizes, those of a 3-D nnU-Net, and 8 × 2048 tokens of 4096 channels.
STAGES = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
GPU_SHAPES: list[tuple[int, ...]] = [(batch, *stage) for batch in (32, 256) for stage in STAGES]
GPU_SHAPES += [(2, channels, size, size, size) for channels, size in ((32, 128), (64, 64), (128, 32), (256, 16), (320, 8))]
GPU_SHAPES += [(8 * 2048, 4096)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = ("rows", "columns")
MODES = ("forward", "forward+backward", "eval")
# Tensors of the size of x that must cross memory at least: read x, write y; and back: read x and dy, write dx.
MUST_MOVE = {"forward": 2, "forward+backward": 5, "eval": 2}

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
Run = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """One line of the benchmark: a method on a shape, in a layout and a mode."""

    method: str
    shape: tuple[int, ...]
    layout: str
    mode: str
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def shape_name(self) -> str:
        """The shape as in the tables."""
        return "×".join(map(str, self.shape))

    def example(self) -> Tensor:
        """Random data of that shape and layout."""
        x = torch.randn(self.shape, device=self.device, dtype=DTYPES[self.dtype])
        return x.contiguous(memory_format=_FORMATS[x.dim()]) if self.layout == "columns" and x.dim() in _FORMATS else x


def subjects(
    methods: list[str],
    shapes: Sequence[tuple[int, ...]],
    layouts: list[str],
    modes: list[str],
    device: str = "cpu",
    dtypes: Sequence[str] = ("float32",),
) -> list[Subject]:
    """Every combination that exists: (N, C) has one layout only, and some methods refuse some shapes."""
    found = []
    for shape in shapes:
        for layout in layouts if len(shape) in _FORMATS else ["columns" if len(shape) == 2 else "rows"]:
            for mode, dtype in itertools.product(modes, dtypes):
                found += [s for s in (Subject(m, shape, layout, mode, device, dtype) for m in methods) if _works(s)]
    return found


def _works(subject: Subject) -> bool:
    layer, small = (
        make(subject.method, subject.shape[1]),
        torch.randn(2, subject.shape[1], *(min(size, 4) for size in subject.shape[2:])),
    )
    try:
        with torch.no_grad():
            layer(small, **layer.example_inputs(small))
    except ValueError:
        return False
    return True


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape written as 32x64x56x56."""
    sizes = text.replace("×", "x").split("x")
    if not 2 <= len(sizes) <= 5 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise OptionError(f"a shape is expected as 2 to 5 positive sizes, N and C first: got {text!r}; try 32x64x56x56")
    return tuple(int(size) for size in sizes)


def contestants(subject: Subject, oracles: Path | None, forced: str) -> dict[str, Run]:
    """Functions to time by name: ours, torch's batch norm, torch's twin and the oracle where they exist, and a copy of x."""
    x = subject.example()
    channels = subject.shape[1]

    def run(layer: torch.nn.Module, extra: dict[str, Tensor] | None = None) -> Run:
        return _runner(layer.to(x.device, x.dtype), x, subject.mode, extra or {})

    ours = make(subject.method, channels)
    inputs = ours.example_inputs(x)
    runs: dict[str, Run] = {"ours": _within(forced, run(ours, inputs))}
    runs["batch"] = run(find("batch").load()(channels).torch_twin(len(subject.shape) - 2))
    twin = ours.torch_twin(len(subject.shape) - 2)
    if twin is not None:
        runs["torch"] = run(twin)
    oracle = oracles and load_oracle(oracles, subject.method)
    if oracle:
        runs["oracle"] = run(_OracleLayer(oracle, make(subject.method, channels)), inputs)
        if subject.device != "cpu":
            compiled = _OracleLayer(oracle, make(subject.method, channels))
            compiled.compile()
            runs["compiled"] = run(compiled, inputs)
    if subject.device != "cpu":
        runs |= {name: run(layer) for name, layer in rivals(subject.method, subject.shape, ours).items()}
    target = torch.empty_like(x)
    runs["copy"] = lambda: target.copy_(x)
    return runs


def load_oracle(folder: Path, method: str) -> ModuleType | None:
    """The oracle of a method from a folder of them, such as `tests/oracles` of a checkout; None if it has none."""
    if not (folder / f"{method}.py").exists():
        return None
    parent = str(folder.resolve().parent)
    if parent not in sys.path:
        sys.path.append(parent)  # oracles may import each other, as modules of their folder
    return importlib.import_module(f"{folder.name}.{method}")


class _OracleLayer(torch.nn.Module):
    """An oracle with the parameters and buffers of one of our layers."""

    def __init__(self, oracle: ModuleType, layer: Any) -> None:
        super().__init__()
        self.oracle, self.layer = oracle, layer
        self.choices = {key: value for key, value in layer.options().items() if key != "bias"}

    def forward(self, x: Tensor, **extra: Tensor) -> Tensor:
        slots = {**self.layer._parameters, **self.layer._buffers}
        y, buffers = self.oracle.forward(x, self.training, **slots, **self.choices, **extra)
        with torch.no_grad():
            for name, value in buffers.items():
                slots[name].copy_(value)
        return y  # type: ignore[no-any-return]


def _runner(layer: torch.nn.Module, x: Tensor, mode: str, extra: dict[str, Tensor]) -> Run:
    if mode != "forward+backward":
        layer.train(mode == "forward")

        def forward() -> object:
            with torch.no_grad():
                return layer(x, **extra)

        return forward
    x = x.detach().requires_grad_()
    wanted = [x, *layer.parameters()]
    dy = torch.randn_like(x)

    def both() -> object:
        return torch.autograd.grad(layer(x, **extra), wanted, dy)

    return both


def _within(forced: str, run: Run) -> Run:
    if forced == "auto":
        return run

    def under() -> object:
        with backend(forced):
            return run()

    return under

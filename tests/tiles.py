"""What the tests of the Triton kernels share: values in every layout, small tiles, and few combinations of many choices."""

import math
from itertools import combinations, product
from random import Random
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = {
    "rows": lambda empty, n, c, s: empty(n, c, s),
    "columns": lambda empty, n, c, s: empty(n, s, c).transpose(1, 2),
    "sliced rows": lambda empty, n, c, s: empty(n + 1, c + 2, s + 1)[1:, 1 : c + 1, 1:],
    "sliced columns": lambda empty, n, c, s: empty(n + 1, s + 1, c + 2).transpose(1, 2)[1:, 1 : c + 1, 1:],
    "neither": lambda empty, n, c, s: empty(s, n, 2 * c).permute(1, 2, 0)[:, ::2],
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def laid_out(values: Tensor, kind: str) -> Tensor:
    """The same values with the strides of that kind."""

    def empty(*shape: int) -> Tensor:
        return torch.full(shape, math.nan, dtype=values.dtype, device=values.device)

    return LAYOUTS[kind](empty, *values.shape).copy_(values)


def use_small_tiles(monkeypatch: Any, tile: int = 64) -> None:
    """On the interpreter tiles are small and programs few, so that even little tensors are cut and merged."""
    from normsmith.kernels.cuda import geometry, launch

    if DEVICE == "cpu":
        for name, value in {"TILE": tile, "WIDTH": 8, "PROGRAMS": 12, "SHORT": 1, "LONGEST": 4}.items():
            monkeypatch.setattr(geometry, name, value)
        monkeypatch.setattr(launch, "MERGED", 16)


def pairs(*choices):
    """Few combinations in which every two values of any two choices meet."""
    draw, found = Random(0), []
    missing = {(i, a, j, b) for i, j in combinations(range(len(choices)), 2) for a, b in product(choices[i], choices[j])}
    while missing:
        i, a, j, b = min(missing, key=str)
        drawn = [[draw.choice(values) for values in choices] for _ in range(50)]
        for row in drawn:
            row[i], row[j] = a, b
        best = max((of_two(row) for row in drawn), key=lambda met: len(met & missing))
        missing -= best
        found.append(drawn[[of_two(row) for row in drawn].index(best)])
    return found


def of_two(row):
    return {(i, row[i], j, row[j]) for i, j in combinations(range(len(row)), 2)}

"""Natural-gradient layers against plain SGD, step by step, on inputs of uneven directions: `python benchmarks/natural.py`.

The handwritten digits, mixed so that directions differ by a factor of 100, go through a small network. Every method has the learning rate
of a grid that ends with the lowest loss on other seeds; then all run on the same seeds: same weights, same batches.
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import normsmith as ns
from normsmith import data
from normsmith.bench import record

METHODS = (
    "sgd",
    "batch norm",
    "wnn",
    "wnn:eps=0.1",
    "prong_plus",
    "gwnn_pre",
    "gwnn_post:energy=0.99",
    "eigennet",
    "eigennet:eps=0.1",
)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
LOOK_AT = (10, 30, 100, 300)
EVERY, BATCH = 20, 128
TUNED_ON, SEEDS = (100, 101), range(5)


@dataclass(frozen=True)
class Curve:
    """The loss on all training data after some numbers of steps."""

    losses: dict[int, float]


def main() -> None:
    """Tune, run, print."""
    torch.set_num_threads(1)
    x, target = _digits()
    table = Table("method", "rate", *(f"loss after {s}" for s in LOOK_AT), "steps to SGD's last", "time of a step", box=None)
    runs: dict[str, list[Curve]] = {}
    for method in METHODS:
        rate = min(RATES, key=lambda rate: _tuning_loss(method, rate, x, target))
        runs[method] = [_run(method, rate, seed, x, target) for seed in SEEDS]
        cells = [_spread([run.losses[s] for run in runs[method]]) for s in LOOK_AT]
        pairs = zip(runs[method], runs["sgd"], strict=True)
        goal = [next((s for s, loss in one.losses.items() if loss <= sgd.losses[LOOK_AT[-1]]), 0) for one, sgd in pairs]
        reached = f"{statistics.median(goal):.0f}" if all(goal) else "never"
        table.add_row(method, f"{rate:g}", *cells, reached, f"{_time(method, x, target):.1f} x SGD")
        print(method, file=sys.stderr)
    around = record.circumstances()
    console = Console(width=160)
    console.print(f"{around['machine']}, torch {around['torch']}, one thread; mean of {len(SEEDS)} seeds, smallest to largest")
    console.print(table)


def _tuning_loss(method: str, rate: float, x: Tensor, target: Tensor) -> float:
    return statistics.mean(_run(method, rate, seed, x, target).losses[LOOK_AT[-1]] for seed in TUNED_ON)


def _digits() -> tuple[Tensor, Tensor]:
    digits = data.load("digits").train
    generator = torch.Generator().manual_seed(0)
    x = digits.inputs.flatten(1).float()
    x = (x - x.mean()) / x.std()
    left = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    return x @ left * torch.logspace(0, -2, 64) + 0.5, digits.targets


def _run(method: str, rate: float, seed: int, x: Tensor, target: Tensor) -> Curve:
    torch.manual_seed(seed)
    model = _network(method == "batch norm")
    optimizer = torch.optim.SGD(model.parameters(), rate)
    _place(model, method, optimizer, x, target)
    generator = torch.Generator().manual_seed(seed)
    losses = {}
    for step in range(1, LOOK_AT[-1] + 1):
        picked = torch.randint(len(x), (BATCH,), generator=generator)
        _step(model, optimizer, x[picked], target[picked], step)
        if step % 10 == 0:
            losses[step] = _loss(model, x, target)
            if not losses[step] < 1e3:  # it diverged
                return Curve(dict.fromkeys(range(10, LOOK_AT[-1] + 1, 10), float("inf")))
    return Curve(losses)


def _place(model: nn.Module, method: str, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> None:
    if method not in {"sgd", "batch norm"}:
        loss = F.cross_entropy if method.startswith("eigennet") else None
        ns.reparametrize(model, method, data=(x, target), every=EVERY, optimizer=optimizer, loss=loss)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor, step: int) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), target).backward()
    optimizer.step()
    ns.step_schedules(model, step, LOOK_AT[-1])


def _time(method: str, x: Tensor, target: Tensor) -> float:
    """A step's time, refreshes included, over that of SGD: the median of rounds in which both run."""
    networks = []
    for name in (method, "sgd"):
        model = _network(name == "batch norm")
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        _place(model, name, optimizer, x, target)
        networks.append((model, optimizer))
    ratios = []
    for round_ in range(15):
        seconds = []
        for model, optimizer in networks:
            began = time.perf_counter()
            for step in range(2 * EVERY):
                _step(model, optimizer, x[:BATCH], target[:BATCH], step + 1)
            seconds.append(time.perf_counter() - began)
        if round_:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def _network(normed: bool) -> nn.Sequential:
    parts: list[nn.Module] = []
    for width in (64, 64, 64, 10):
        linear = nn.Linear(64, width)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        parts += [linear, *([nn.BatchNorm1d(width)] if normed and width == 64 else []), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, target: Tensor) -> float:
    model.eval()
    loss = F.cross_entropy(model(x), target).item()
    model.train()
    return loss


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()

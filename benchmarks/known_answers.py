"""Are planted faults found, are healthy models clean? `python benchmarks/known_answers.py` prints, and adds to results/known_answers.csv.

With a number, `python benchmarks/known_answers.py 5`, so many models, and nothing is added.

Random small convolutional nets are trained for a few steps on random images with a class signal. Each is examined as it is, on data it has
not seen, and then with one planted fault: found means the code of the fault is there, clean that there is no warning and no error.
"""

import copy
import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import normsmith as ns
from normsmith.bench import record

MODELS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
FOR_INFORMATION = {"NS110", "NS209"}
Data = list[tuple[torch.Tensor, torch.Tensor]]


def data(generator: torch.Generator, size: int, number: int, signal: torch.Tensor) -> Data:
    """Batches of images: noise, a brightness of each image, and a pattern for its class."""
    found = []
    for _ in range(number):
        y = torch.randint(0, 4, (size,), generator=generator)
        x = (
            torch.randn(size, 3, 16, 16, generator=generator)
            + 0.5 * torch.randn(size, 3, 1, 1, generator=generator)
            + signal[y]
        )
        found.append((x, y))
    return found


def make(generator: torch.Generator) -> nn.Sequential:
    """A net of three to five blocks of random widths, each but the first at half the resolution."""
    layers: list[nn.Module] = []
    channels = 3
    for block in range(int(torch.randint(3, 6, (), generator=generator))):
        width = 8 * int(torch.randint(1, 5, (), generator=generator))
        layers += [
            nn.Conv2d(channels, width, 3, stride=2 if block else 1, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def train(model: nn.Module, batches: Data) -> None:
    """Three epochs, the learning rate falling to zero as in any training that is finished: before that, statistics do lag behind."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=3 * len(batches))
    for _ in range(3):
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Its batch norms."""
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def never(model: nn.Module) -> None:
    """Statistics as they are born."""
    for norm in norms(model):
        norm.reset_running_stats()


def stale(model: nn.Module) -> None:
    """Weights that moved since."""
    with torch.no_grad():
        model[0].weight.mul_(2.5)  # type: ignore[index, operator]


def inverted(model: nn.Module) -> None:
    """Statistics of an average that hardly moved."""
    for norm in norms(model):
        norm.running_mean.mul_(0.05)  # type: ignore[union-attr]
        norm.running_var.mul_(0.05).add_(0.95)  # type: ignore[union-attr]


def poisoned(model: nn.Module) -> None:
    """One infinite variance."""
    norms(model)[-1].running_var[0] = float("inf")  # type: ignore[index]


def tiny(model: nn.Module) -> None:
    """A quarter of the channels of the first layer nearly silent, with the statistics to match."""
    with torch.no_grad():
        weight, norm = model[0].weight, norms(model)[0]  # type: ignore[index]
        quarter = max(1, norm.num_features // 4)
        weight[:quarter] *= 1e-3  # type: ignore[index, operator]
        norm.running_mean[:quarter] *= 1e-3  # type: ignore[index]
        norm.running_var[:quarter] *= 1e-6  # type: ignore[index]


def dead(model: nn.Module) -> None:
    """A quarter of the channels of the first layer at zero."""
    with torch.no_grad():
        norm = norms(model)[0]
        quarter = max(1, norm.num_features // 4)
        model[0].weight[:quarter] = 0  # type: ignore[index, operator]
        norm.running_mean[:quarter] = 0  # type: ignore[index]
        norm.running_var[:quarter] = 0  # type: ignore[index]


def thawed(model: nn.Module) -> None:
    """Weight and bias of the first norm kept from training, and nothing else."""
    norms(model)[0].requires_grad_(False)


def untracked(model: nn.Module) -> None:
    """No running statistics."""
    for norm in norms(model):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False


def counted(model: nn.Module, steps: int) -> dict[str, Any]:
    """An optimizer that took so many steps."""
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter]["step"] = torch.tensor(float(steps))
    return {"optimizer": optimizer}


def left_behind(model: nn.Module) -> dict[str, Any]:
    """Weights that moved since, by an optimizer that took twice the steps."""
    stale(model)
    return counted(model, 2 * int(norms(model)[0].num_batches_tracked))  # type: ignore[arg-type]


def recomputed(model: nn.Module) -> dict[str, Any]:
    """Statistics of the last norm that moved twice a step."""
    norms(model)[-1].num_batches_tracked *= 2  # type: ignore[operator]
    return counted(model, int(norms(model)[0].num_batches_tracked))  # type: ignore[arg-type]


def brighter(model: nn.Module) -> None:
    """Source statistics a fifth of a deviation away from the data's."""
    norm = norms(model)[0]
    norm.running_mean -= 0.2 * norm.running_var.sqrt()  # type: ignore[operator, union-attr]


class CenteringNorm(nn.Module):
    """A normalizer of someone's own, which subtracts the mean of the batch."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.var = norm.weight, norm.bias, nn.Parameter(norm.running_var, requires_grad=False)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The batch's own mean, and a constant deviation."""
        y = (x - x.mean((0, 2, 3), keepdim=True)) / (self.var.view(-1, 1, 1) + 1e-5).sqrt()
        return y * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def of_the_batch(model: nn.Module) -> None:
    """The last norm replaced by one of someone's own."""
    at = max(i for i, m in enumerate(model) if isinstance(m, nn.BatchNorm2d))  # type: ignore[arg-type]
    model[at] = CenteringNorm(model[at])  # type: ignore[index, operator, arg-type]


def flipping(model: nn.Module) -> None:
    """The first norm gives another memory format."""
    norms(model)[0].register_forward_hook(lambda m, x, y: y.contiguous(memory_format=torch.channels_last))


def shifted(model: nn.Module) -> None:
    """The running means of one layer two deviations off, whose share in the loss depth="full" is to find."""
    chosen = norms(model)[int(torch.randint(len(norms(model)), ()))]
    chosen.running_mean += 2 * chosen.running_var.sqrt() * torch.randn(chosen.num_features).sign()  # type: ignore[union-attr, operator]


def share_is_found(sick: nn.Module, healthy: nn.Module, batches: Data) -> bool:
    """Whether NS401 names the layer that differs first."""
    names = {m: name for name, m in sick.named_modules()}
    apart = [a for a, b in zip(norms(sick), norms(healthy), strict=True) if not torch.equal(a.running_mean, b.running_mean)]  # type: ignore[arg-type]
    exam = ns.examine(sick, batches, depth="full")
    return any(f.code == "NS401" and f.layers[0] == names[apart[0]] for f in exam.findings)


Plant = Callable[[nn.Module], "dict[str, Any] | None"]  # what it gives is for `examine`
FAULTS: dict[str, tuple[Plant, str, int]] = {  # what is done, the code, the batch size of the examination
    "never updated": (never, "NS101", 32),
    "stale": (stale, "NS102", 32),
    "hardly moved": (inverted, "NS102", 32),
    "poisoned": (poisoned, "NS103", 32),
    "eps dominates": (tiny, "NS104", 32),
    "dead channels": (dead, "NS105", 32),
    "batches of two": (lambda _: None, "NS201", 2),
    "no statistics": (untracked, "NS204", 4),
    "not frozen": (thawed, "NS207", 32),
    "left behind": (left_behind, "NS108", 32),
    "recomputed": (recomputed, "NS109", 32),
    "slightly brighter": (brighter, "NS110", 32),
    "of the batch": (of_the_batch, "NS208", 32),
    "memory format": (flipping, "NS209", 32),
}


def main() -> None:
    """The rates."""
    clean, closely, shares, found = 0, 0, 0, dict.fromkeys(FAULTS, 0)
    for seed in range(MODELS):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        signal = torch.randn(4, 3, 16, 16, generator=generator)
        model = make(generator)
        train(model, data(generator, 32, 25, signal))
        held_out = {size: data(generator, size, 256 // size, signal) for size in (32, 4, 2)}
        exam = ns.examine(model, held_out[32])
        clean += not exam.at_least("warning")
        if exam.at_least("warning"):
            print(f"seed {seed}: {exam}", file=sys.stderr)
        closely += not ns.examine(model, held_out[32], depth="full").at_least("warning")
        sick = copy.deepcopy(model)
        shifted(sick)
        shares += share_is_found(sick, model, held_out[32])
        for name, (plant, code, size) in FAULTS.items():
            sick = copy.deepcopy(model)
            exam = ns.examine(sick, held_out[size], **(plant(sick) or {}))
            found[name] += any(f.code == code for f in exam.at_least("info" if code in FOR_INFORMATION else "warning"))
    around = record.circumstances()
    looked_closer = [("healthy, depth full", "", closely), ("one layer shifted", "NS401", shares)]
    rows = [("healthy", "", clean), *looked_closer, *((name, FAULTS[name][1], number) for name, number in found.items())]
    for name, code, number in rows:
        print(f"{name:19} {code:6} {number} of {MODELS}")
    if len(sys.argv) > 1:
        return
    with (Path(__file__).parent / "results" / "known_answers.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(["date", "commit", "torch", "model", "code", "right", "of"])
        for row in rows:
            writer.writerow([around["date"], around["commit"], around["torch"], *row, MODELS])


main()

"""What surgery costs and gains on models of transformers: `python benchmarks/surgery.py`, printed as a table; needs the dev group.

Folding: evaluation before and after in interleaved rounds, medians of the paired ratios. Converting: the call itself, of 300 layers.
"""

import copy
import statistics
import time

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn

import normsmith as ns
from normsmith.bench import record
from normsmith.bench.timing import interleave

ROUNDS = 15


def shaken(model: nn.Module) -> nn.Module:
    """In evaluation, with statistics that are not those of the beginning."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(generator=generator)
    return model.eval()


def folding(table: Table, name: str, model: nn.Module, x: torch.Tensor) -> None:
    """One row: how much faster a model evaluates when folded, and how far its output moved."""
    folded = copy.deepcopy(model)
    result = ns.fold(folded, x)
    with torch.inference_mode():
        times = interleave({"before": lambda: model(x), "after": lambda: folded(x)}, ROUNDS)
    before, after = times.median("before") * 1e3, times.median("after") * 1e3
    gain = 1 - times.ratio("after", "before")
    error = f"{result.error.relative:.0e}" if result.error else "–"
    table.add_row(name, str(tuple(x.shape)), f"{len(result.folded)}", f"{before:.1f}", f"{after:.1f}", f"{gain:.0%}", error)


def converting(console: Console) -> None:
    """The time of a conversion of 300 layers, without data and with."""
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(300))).eval()
    x = torch.randn(2, 64, 8, 8)
    plain, verified, forward = [], [], []
    for _ in range(ROUNDS):
        for kept, verify in ((plain, None), (verified, x)):
            start = time.perf_counter()
            conversion = ns.convert(net, "switchable", verify=verify)
            kept.append(time.perf_counter() - start)
            conversion.undo()
        start = time.perf_counter()
        with torch.no_grad():
            net(x)
        forward.append(time.perf_counter() - start)
    median = [f"{statistics.median(times):.3f} s" for times in (plain, verified, forward)]
    console.print(f"convert 300 layers: {median[0]}; with verify {median[1]}; one forward {median[2]}")


def main() -> None:
    """The table."""
    console = Console()
    table = Table("model", "input", "folded", "before ms", "after ms", "faster", "output moved", box=None)
    models = {
        "ResNet-50": transformers.ResNetForImageClassification(transformers.ResNetConfig()),
        "MobileNetV2": transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config()),
        "RegNet": transformers.RegNetForImageClassification(
            transformers.RegNetConfig(hidden_sizes=[64, 128, 288, 672], depths=[1, 2, 4, 2], groups_width=16)
        ),
    }
    for name, model in models.items():
        for batch in (1, 8):
            folding(table, name, shaken(model), torch.randn(batch, 3, 224, 224))
    small = shaken(models["ResNet-50"]).double()
    folding(table, "ResNet-50, float64", small, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    around = record.circumstances()
    console.print(f"{around['machine']}, torch {around['torch']}, allocator {around['allocator']}")
    console.print(table)
    converting(console)


main()

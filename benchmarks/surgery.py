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
    """One row: how much faster a model evaluates when folded, and when packed too, and how far its output moved."""
    folded, packed = copy.deepcopy(model), copy.deepcopy(model)
    result = ns.fold(folded, x)
    ns.fold(packed, x, pack=True)
    with torch.inference_mode():
        runs = {"before": lambda: model(x), "folded": lambda: folded(x), "packed": lambda: packed(x)}
        times = interleave(runs, ROUNDS)
    milliseconds = [f"{times.median(name) * 1e3:.1f}" for name in runs]
    gains = [f"{1 - times.ratio(name, 'before'):.0%}" for name in ("folded", "packed")]
    table.add_row(name, str(tuple(x.shape)), f"{len(result.folded)}", *milliseconds, *gains, f"{result.error.relative:.0e}")


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
    console = Console(width=120)
    headings = "model", "input", "folded", "before ms", "folded ms", "packed ms", "folded", "packed", "output moved"
    table = Table(*headings, box=None)
    models = {
        "ResNet-50": transformers.ResNetForImageClassification(transformers.ResNetConfig()),
        "MobileNetV2": transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config()),
        "RegNet": transformers.RegNetForImageClassification(
            transformers.RegNetConfig(hidden_sizes=[64, 128, 288, 672], depths=[1, 2, 4, 2], groups_width=16)
        ),
    }
    for name, model in models.items():
        for batch, size in ((1, 224), (8, 224), (32, 64)):
            folding(table, name, shaken(model), torch.randn(batch, 3, size, size))
    last = torch.randn(8, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    folding(table, "ResNet-50, channels_last", shaken(models["ResNet-50"]).to(memory_format=torch.channels_last), last)
    small = shaken(models["ResNet-50"]).double()
    folding(table, "ResNet-50, float64", small, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    around = record.circumstances()
    console.print(f"{around['machine']}, torch {around['torch']}, allocator {around['allocator']}")
    console.print(table)
    converting(console)


main()

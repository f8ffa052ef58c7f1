"""What an examination costs: `python benchmarks/examination.py`, 8 batches of 32×3×64×64 through a ResNet-50 of transformers."""

import statistics
import time
import tracemalloc

import torch
import transformers
from rich.console import Console

import normsmith as ns
from normsmith.bench import record

ROUNDS = 5


def main() -> None:
    """The ratio to the plain forwards of evaluation, interleaved."""
    model = transformers.ResNetModel(transformers.ResNetConfig()).eval()
    batches = [torch.randn(32, 3, 64, 64) for _ in range(8)]
    plain, examined = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with torch.no_grad():
            for x in batches:
                model(x)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        ns.examine(model, batches)
        examined.append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(plain, examined, strict=True))
    tracemalloc.start()
    ns.examine(model, batches[:2])
    peak = tracemalloc.get_traced_memory()[1]
    around = record.circumstances()
    times = f"forwards {statistics.median(plain):.2f} s, examine {statistics.median(examined):.2f} s, ratio {ratio:.2f}"
    memory = f"Python objects at most {peak / 2**20:.0f} MiB, beside a copy of the parameters and buffers"
    Console().print(f"{around['machine']}, torch {around['torch']}: {times}; {memory}")


main()

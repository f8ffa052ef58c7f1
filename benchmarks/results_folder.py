"""How long a folder of 1,000 trials takes to load and to report, and how much memory: `python benchmarks/results_folder.py`.

The folder is made up in a temporary place: 10 normalizers, 5 batch sizes, 4 data sets, 5 seeds; 20 epochs with 10 records each. What is
timed is a process of its own, from its start: load, statistics, records of all epochs, the table as text, JSON, Markdown, CSV and the page.
"""

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from normsmith.trials.files import Folder

METHODS = ("batch", "group", "layer", "instance", "rms", "switchable", "ghost", "renorm", "filter_response", "ibn")
NAMES = (
    "train loss",
    "gradient norm",
    "largest gradient norm",
    "seconds per step",
    "test loss",
    "accuracy",
    "seconds",
    "a",
    "b",
    "c",
)
REPORT = """
import resource, sys, time
began = time.perf_counter()
from normsmith.comparison.comparison import Comparison
imported = time.perf_counter()
comparison = Comparison.load(sys.argv[1])
loaded = time.perf_counter()
rows = comparison.results.records().height
read = time.perf_counter()
text = str(comparison)
for kind in ("json", "md", "csv", "html"):
    comparison.save(f"{sys.argv[1]}/report.{kind}")
ended = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
steps = {"import": imported - began, "load and judge": loaded - imported, f"read {rows} records": read - loaded, "write": ended - read}
print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.items()))
size = len(open(f"{sys.argv[1]}/report.html").read()) / 1e6
print(f"page {size:.2f} MB")
print(f"whole {ended - began:.2f} s, peak memory {peak:.0f} MiB")
"""


def fill(path: Path, trials: int) -> None:
    """Make up the folder."""
    draw = random.Random(0)
    folder = Folder(path)
    folder.prepare()
    axes = itertools.product(range(5), ("digits", "mnist", "usps", "cifar10"), (2, 4, 8, 16, 32), METHODS)
    for number, (seed, dataset, batch, method) in enumerate(itertools.islice(axes, trials)):
        accuracy = 0.9 - (0.3 if method == "batch" and batch == 2 else 0.0) + draw.gauss(0, 0.01)
        records = [(epoch, 10 * epoch, "", name, draw.random()) for epoch in range(20) for name in NAMES]
        trial = {
            "dataset": dataset,
            "model": "shallow_cnn",
            "normalizer": method,
            "label": method,
            "batch": batch,
            "seed": seed,
        }
        common = {"statistics_batch": batch, "epochs": 20, "steps": None, "optimizer": "sgd", "learning_rate": 0.05}
        rest = {
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": {"name": "cosine"},
            "training": {"amp": False},
            "searching": False,
        }
        manifest = {
            "trial": {**trial, **common, **rest},
            "status": "finished",
            "accuracy": accuracy,
            "timing": {"seconds": 10.0, "seconds per step": 0.01 + draw.random() / 1000, "seconds to target": None},
            "memory": 10_000_000,
            "parameters": 100_000,
            "environment": {"source": "1", "machine": "here", "processor": "cpu"},
            "ended": float(number),
        }
        folder.finish(f"{number:020x}", manifest, records)


def main() -> None:
    """Fill and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as path:
        fill(Path(path), trials)
        print(f"{trials} trials:", flush=True)
        subprocess.run([sys.executable, "-c", REPORT, path], check=True)


if __name__ == "__main__":
    main()

"""What the loop of a trial costs beside a bare one: `python benchmarks/loop.py`, steps of the demo's network on digits, interleaved."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console

from normsmith import data, models
from normsmith.bench import record
from normsmith.trials.algorithms.supervised import Supervised
from normsmith.trials.build import build
from normsmith.trials.plan import Trial, plan
from normsmith.trials.recipe import read
from normsmith.trials.training import Run, make_optimizer, train_epoch

ROUNDS = 15


def main() -> None:
    """Epochs of both, one after the other; the ratio is the median over rounds."""
    torch.set_num_threads(1)
    for batch in (2, 32):
        recipe = read(
            {"normalizers": ["batch"], "models": ["shallow_cnn:width=8"], "batch_sizes": [batch], "epochs": 1, "seeds": 1}
        )
        (trial,) = plan(recipe, "cpu")
        ratios = [_round(trial) for _ in range(ROUNDS)]
        around = record.circumstances()
        low, high = sorted(ratios)[2], sorted(ratios)[-3]
        Console().print(
            f"{around['machine']}, torch {around['torch']}, batch {batch}: {statistics.median(ratios):.3f} x a bare loop "
            f"(most rounds {low:.3f} to {high:.3f})"
        )


def _round(trial: Trial) -> float:
    digits = data.load("digits:train=600")
    batches = data.Batches(digits.train, trial.batch, mean=digits.mean, std=digits.std)
    steps, held = len(batches), list(batches)
    ours, bare = build(trial, digits), models.make(trial.model, in_channels=1, image_size=8, norm="batch")
    run, algorithm = Run(ours, make_optimizer(ours, trial), None), Supervised(trial, (digits,))
    optimizer = make_optimizer(bare, trial)

    def by_trial() -> None:
        run.step = 0
        train_epoch(run, trial, algorithm, iter(held), steps, lambda _: None)

    def by_hand() -> None:
        bare.train()
        for x, y in held:
            optimizer.zero_grad()
            loss = F.cross_entropy(bare(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    for each in (by_trial, by_hand):
        each()
    return _seconds(by_trial) / _seconds(by_hand)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

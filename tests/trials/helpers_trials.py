"""Small trials for tests."""

from typing import Any

from normsmith.trials.files import Folder
from normsmith.trials.plan import Trial, plan
from normsmith.trials.recipe import Recipe, read

DATA = "digits:train=120,test=60"
SMALL: dict[str, Any] = {
    "datasets": [DATA],
    "models": ["mlp_relu"],
    "normalizers": ["batch", "group:num_groups=4"],
    "batch_sizes": [20],
    "epochs": 3,
    "seeds": 1,
}
OF_RUNS = {"seconds", "seconds per step", "peak memory"}


def recipe(**changes: Any) -> Recipe:
    return read({**SMALL, **changes})


def trials(**changes: Any) -> list[Trial]:
    return plan(recipe(**changes), "cpu")


def records(folder: Folder, trial: Trial) -> list[tuple[Any, ...]]:
    """What a trial recorded, but for times and the memory of the process, which differ from run to run."""
    import polars as pl

    table = pl.read_parquet(folder.trials / f"{trial.identity}.parquet")
    return [row for row in table.rows() if row[3] not in OF_RUNS]

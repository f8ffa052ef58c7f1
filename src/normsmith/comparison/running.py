"""`compare`: train normalizers side by side, and say what came of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normsmith.comparison.comparison import Comparison
from normsmith.errors import OptionError
from normsmith.trials.engines import Engine
from normsmith.trials.engines.inline import InlineEngine
from normsmith.trials.engines.local import LocalEngine
from normsmith.trials.engines.ranks import RanksEngine, launched
from normsmith.trials.engines.ray import RayEngine
from normsmith.trials.files import Folder, write_whole
from normsmith.trials.live import Live
from normsmith.trials.loggers import check
from normsmith.trials.plan import Trial
from normsmith.trials.recipe import Recipe, read
from normsmith.trials.sweep import Listener, sweep


def compare(
    recipe: Recipe | dict[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    root: str | Path | None = None,
    loggers: Sequence[str] = (),
    resume: bool = True,
    quiet: bool = False,
) -> Comparison:
    """Train every normalizer of a recipe with every data set, model, batch size and seed, and compare.

    ```
    result = ns.compare({"normalizers": ["batch", "group", "switchable"], "batch_sizes": [2, 32], "epochs": 10}, "results")
    print(result)
    result.save("results/report.html")
    ```

    `recipe` is a TOML file, a mapping or a `Recipe`; `normsmith compare --init` prints one with comments. Results go to the folder `out`,
    by default normsmith-results/NAME; what is finished there is not run again, and what was interrupted goes on from its last epoch, unless
    `resume=False` has the recipe's trials forgotten and run anew.
    `engine` is "local", as many processes as there are cores (or `workers`), "ray", a cluster (of `address`, by default this machine
    alone), or "inline", this process; started by torchrun, all ranks train each trial together. `root` is where data sets lie, by default
    the environment variable NORMSMITH_DATA. `loggers` are tensorboard, wandb, trackio, mlflow, or package.module:factory. On a
    terminal bars show how far it is; `quiet` leaves them out.
    """
    recipe = read(recipe)
    folder = Folder(out or Path("normsmith-results") / recipe.name)
    where = root or os.environ.get("NORMSMITH_DATA")
    names = check(loggers)
    hands = _engine(engine, workers, address)

    def run() -> list[Trial]:
        folder.prepare()
        text = recipe.model_dump_json(indent=2)
        write_whole(folder.path / "recipe.json", lambda part: part.write_text(text))
        listener = Listener() if quiet else Live()
        with listener:
            return sweep(recipe, folder, hands, None if where is None else Path(where), listener, names, resume=resume)

    trials = hands.among_ranks(run) if isinstance(hands, RanksEngine) else run()
    return Comparison.load(folder.path, only=[t.identity for t in trials], baseline=recipe.reference)


def _engine(name: str, workers: int | None, address: str | None) -> Engine:
    if address is not None and name != "ray":
        raise OptionError(f"compare expects address, of a cluster, with engine='ray': got engine={name!r}")
    if launched():
        if name != "local" or workers is not None:
            raise OptionError(
                f"compare started by torchrun runs on its ranks: got engine={name!r}, workers={workers!r}; leave them out"
            )
        return RanksEngine()
    if name == "local":
        return LocalEngine(workers)
    if name == "ray":
        return RayEngine(address, workers)
    if name == "inline":
        return InlineEngine()
    raise OptionError(f"compare expects engine as local, inline or ray: got {name!r}")

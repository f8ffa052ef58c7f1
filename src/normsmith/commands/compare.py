"""`compare` and `report`: train normalizers side by side, and look at results."""

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from normsmith.errors import OptionError

if TYPE_CHECKING:
    from normsmith.comparison.comparison import Comparison

Flag = Annotated[bool, Parameter(negative="")]


def compare(
    recipe: Path | None = None,
    *,
    out: Path | None = None,
    engine: Literal["local", "ray", "inline"] = "local",
    workers: int | None = None,
    address: str | None = None,
    root: Path | None = None,
    logger: list[str] | None = None,
    save: list[Path] | None = None,
    resume: bool = True,
    init: Flag = False,
    schema: Flag = False,
    quiet: Flag = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train normalizers side by side: seeds, paired differences with intervals, and a verdict that says when there is none.

    What is finished in the folder is not run again, what was interrupted goes on: run the same command again after a kill.

    Parameters
    ----------
    recipe
        A TOML file (default: the one that --init prints).
    out
        The folder of results (default: normsmith-results/NAME).
    engine
        Processes of this machine, a Ray cluster, or this process alone.
    workers
        How many trials at a time (default: as many as there are cores or GPUs for).
    address
        Of a Ray cluster; auto finds the one this machine is part of.
    root
        Where data sets lie (default: the environment variable NORMSMITH_DATA).
    logger
        Also log to tensorboard, wandb, trackio, mlflow, or package.module:factory; as often as needed.
    save
        Files to write the report to: .html, .json, .md or .csv (default: report.html and the others in the folder).
    resume
        Leave what is finished as it is and go on with what was interrupted; --no-resume forgets both, and runs the recipe anew.
    init
        Print a recipe with comments, and stop.
    schema
        Print the JSON schema of a recipe, and stop.
    quiet
        No progress.
    as_json
        Print the result as JSON.
    """
    if init:
        print(example(), end="")
        return
    from normsmith.trials import recipe as recipes

    if schema:
        print(json.dumps(recipes.json_schema(), indent=2))
        return
    from normsmith.comparison.running import compare as run
    from normsmith.trials.engines.ranks import leads

    chosen = recipes.read(recipe) if recipe is not None else recipes.read(_embedded())
    out = out or Path("normsmith-results") / chosen.name
    result = run(
        chosen,
        out,
        engine=engine,
        workers=workers,
        address=address,
        root=root,
        loggers=logger or (),
        resume=resume,
        quiet=quiet,
    )
    if not leads():
        return
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)
    _write(result, save or [out / f"report{suffix}" for suffix in (".json", ".md", ".csv", ".html")])


def report(
    runs: list[Path],
    *,
    baseline: str | None = None,
    save: list[Path] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Tell what came of comparisons: of one folder of results, or of several together.

    Parameters
    ----------
    runs
        Folders that compare has written.
    baseline
        The normalizer that others are compared with (default: that of the recipe).
    save
        Files to write to: .html, .json, .md or .csv.
    as_json
        Print one object with all trials.
    """
    from normsmith.comparison.comparison import Comparison

    if not runs:
        raise OptionError("report expects at least one folder of results: got none; normsmith compare makes one")
    result = Comparison.load(*runs, baseline=baseline)
    print(json.dumps(result.to_dict(), indent=2) if as_json else result)
    _write(result, save or [])


def demo(*, quick: Flag = False, out: Path | None = None, quiet: Flag = False) -> None:
    """Compare normalizers on handwritten digits, and examine the best and the worst model: under four minutes on two cores.

    Parameters
    ----------
    quick
        Two normalizers, one epoch, one seed: in seconds.
    out
        The folder of results (default: normsmith-results/digits).
    quiet
        No progress.
    """
    from normsmith.comparison import demonstration

    recipe = demonstration.quick(_embedded()) if quick else _embedded()
    print(demonstration.demonstrate(recipe, out or Path("normsmith-results") / str(recipe["name"]), quiet=quiet))


def _write(result: "Comparison", paths: list[Path]) -> None:
    """A page last, as it leads to what lies beside it."""
    for path in sorted(paths, key=lambda path: path.suffix == ".html"):
        print(f"written: {result.save(path)}", file=sys.stderr)


def example() -> str:
    """The recipe that is part of the package, as text."""
    return files("normsmith.trials").joinpath("example.toml").read_text()


def _embedded() -> dict[str, object]:
    import tomllib

    return tomllib.loads(example())

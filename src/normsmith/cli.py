"""The command line: thin, each command a few lines over the library; torch is imported by the commands that need it."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

import normsmith
from normsmith.commands import compare
from normsmith.errors import NormsmithError, OptionError

app = App(name="normsmith", help=(normsmith.__doc__ or "").partition("\n")[0], version=normsmith.__version__)
for command in (compare.compare, compare.report, compare.demo):
    app.command(command)


def main() -> None:
    """Run the command; what is wrong with its input is one sentence on standard error and exit status 2."""
    try:
        app()
    except NormsmithError as error:
        print(f"normsmith: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@app.command(name="list")
def list_methods(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the methods of the catalog.

    Parameters
    ----------
    as_json
        Print the entries with all their traits as JSON.
    """
    entries = normsmith.catalog().values()
    if as_json:
        print(json.dumps([{**asdict(e), "invariances": sorted(e.invariances)} for e in entries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "class", "family", "what it is"):
        table.add_column(heading)
    for entry in entries:
        table.add_row(entry.name, f"ns.{entry.class_name}", entry.family, entry.summary)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


@app.command
def show(method: str) -> None:
    """Print the card of a method: formula, where it differs, cost, when it fails, reference.

    Parameters
    ----------
    method
        A name of the catalog, as `normsmith list` prints them.
    """
    from normsmith.methods.catalog import find

    entry = find(method)
    print(f"{entry.name}: ns.{entry.class_name}, family {entry.family}\n")
    print(entry.card())
    print(f"\nLeaves the output unchanged: {', '.join(sorted(entry.invariances)) or 'nothing'} of the input.")


@app.command
def convert(
    model: str,
    *,
    to: list[str],
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    example: str | None = None,
    keep: Literal["weights", "function"] = "weights",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Print what `ns.convert` would do to a model, layer by layer.

    Parameters
    ----------
    model
        package.module:factory, path/to/file.py:factory, hf:ID, timm:NAME or torchvision:NAME.
    to
        A method such as group:num_groups=8; or PART=METHOD, as often as needed, PART a name or re:PATTERN, METHOD also none.
    dry_run
        Needed: models are code, so a converted one is kept by converting it in yours.
    example
        The shape of an input such as 2x3x224x224, filled with random numbers: then errors are measured too.
    keep
        What to keep of the layers: weights, or function, fitted on the example.
    as_json
        Print the report as JSON.
    """
    from normsmith.surgery import rehearsal

    print(rehearsal.rehearse(model, to, dry_run, example, keep, as_json), end="")


@app.command
def examine(
    model: str,
    *,
    loader: str | None = None,
    data: str | None = None,
    root: Path | None = None,
    batch_size: int | None = None,
    batches: int | None = None,
    save: Path | None = None,
    fail_on: Literal["warning", "error"] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say what is wrong with a model's normalization: evidence, and the cure as a line of code.

    Parameters
    ----------
    model
        package.module:factory, path/to/file.py:factory, hf:ID, timm:NAME or torchvision:NAME.
    loader
        package.module:factory or path/to/file.py:factory of batches: tensors, mappings, or sequences with the input first.
    data
        Instead of a loader: a data set such as digits, cifar10:test=500, or a folder of images; what it has to test with is looked at.
    root
        The folder of the data (default: the environment variable NORMSMITH_DATA).
    batch_size
        Samples in a batch of the data (default: 32): as many as in training.
    batches
        How many to look at (default: all).
    save
        A file to write the report to: .json, .sarif for CI, or .txt.
    fail_on
        Exit with status 1 if there is a finding this severe.
    as_json
        Print the report as JSON.
    """
    from normsmith.data.load import held_out
    from normsmith.locate import load_loader, load_model

    if data is not None and loader is None:
        given: Iterable[object] = held_out(data, root, 32 if batch_size is None else batch_size)
    elif loader is None or data is not None:
        raise OptionError(f"examine expects --loader or --data: got {'neither' if data is None else 'both'}; give one of them")
    elif root is not None or batch_size is not None:
        raise OptionError("examine expects --root and --batch-size with --data alone: got them with --loader; leave them out")
    else:
        given = load_loader(loader)
    exam = normsmith.examine(load_model(model), given, batches=batches)
    print(json.dumps(exam.to_dict(), indent=2) if as_json else exam)
    if save is not None:
        exam.save(save)
    if fail_on is not None and exam.at_least(fail_on):
        raise SystemExit(1)


@app.command
def bench(
    *,
    methods: list[str] | None = None,
    shapes: list[str] | None = None,
    layouts: list[str] | None = None,
    modes: list[str] | None = None,
    rounds: int = 11,
    backend: str = "auto",
    network: bool = True,
    oracles: Path = Path("tests/oracles"),
    save: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Time every method beside torch's own and the formula in plain torch, alone and inside a network.

    Parameters
    ----------
    methods
        Names of the catalog (default: all); `--methods batch --methods group`.
    shapes
        Shapes such as 32x64x56x56, N and C first (default: six from tokens to three dimensions).
    layouts
        rows (contiguous), columns (channels_last), or both (default).
    modes
        forward, forward+backward, eval (default: all three).
    rounds
        Interleaved rounds a median is taken of.
    backend
        Force a backend for our layers: auto, torch, cpu, reference.
    network
        Also measure the cost inside a small network.
    oracles
        A folder with the formulas in plain torch, as in a checkout; left out if it does not exist.
    save
        A folder to append the rows to, as cpu.csv and network.csv.
    as_json
        Print the rows as JSON instead of tables.
    """
    from normsmith.bench import allocator, session

    allocator.restart_with_settings()
    session.run(
        methods=methods,
        shapes=shapes,
        layouts=layouts,
        modes=modes,
        rounds=rounds,
        backend=backend,
        network=network,
        oracles=oracles,
        save=save,
        as_json=as_json,
    )

"""`examine` and `convert`: what is wrong with a model, and what a conversion would do to it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

import normsmith
from normsmith.errors import OptionError


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
        A file to write the report to: .html, a page that needs no network; .json; .sarif for CI; or .txt.
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

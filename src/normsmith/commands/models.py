"""`examine` and `convert`: what is wrong with a model, and what a conversion would do to it."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def examine(
    model: str | None = None,
    *,
    loader: str | None = None,
    data: str | None = None,
    root: Path | None = None,
    batch_size: int | None = None,
    batches: int | None = None,
    depth: Literal["default", "full"] = "default",
    budget: float | None = None,
    recommend: str | None = None,
    train_steps: int = 0,
    save: Path | None = None,
    fail_on: Literal["warning", "error"] | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say what is wrong with a model's normalization: evidence, and the cure as a line of code.

    Without arguments a small net is trained on digits for some seconds, with faults planted in it, and examined.

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
    depth
        full looks closer: the share of each layer in the loss, gradients, curvature. It needs labels, and some time.
    budget
        Seconds after which the closer look, and the recommendation, begin nothing new.
    recommend
        Constraints such as batch=2,max_slowdown=1.5: then also rank normalizers, by measuring each on these data.
    train_steps
        Steps of training for each of them, before it is measured.
    save
        A file to write the report to: .html, a page that needs no network; .json; .sarif for CI; or .txt.
    fail_on
        Exit with status 1 if there is a finding this severe.
    as_json
        Print the report as JSON.
    """
    from normsmith.doctor import session

    request = session.Request(model, loader, data, root, batch_size, batches, depth, budget, recommend, train_steps)
    exam, text, found = session.run(request)
    print(json.dumps(found, indent=2) if as_json else text)
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

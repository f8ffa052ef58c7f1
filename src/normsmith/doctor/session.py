"""What `normsmith examine` does: load, examine, recommend; the report as text and as data."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from normsmith.data.load import held_out
from normsmith.doctor.embedded import patient
from normsmith.doctor.examination import Examination
from normsmith.doctor.examine import examine
from normsmith.doctor.recommend.constraints import parsed
from normsmith.errors import OptionError
from normsmith.locate import load_loader, load_model


@dataclass(frozen=True)
class Request:
    """The arguments of the command."""

    model: str | None
    loader: str | None
    data: str | None
    root: Path | None
    batch_size: int | None
    batches: int | None
    depth: Literal["default", "full"]
    budget: float | None
    recommend: str | None
    train_steps: int


def run(request: Request) -> tuple[Examination, str, dict[str, Any]]:
    """The examination, what to print of it, and its data."""
    _check_batches(request)
    if request.train_steps and request.recommend is None:
        raise OptionError("examine expects --train-steps with --recommend, whose candidates it trains: got it without")
    wanted = None if request.recommend is None else parsed(request.recommend)
    story = ""
    if request.model is None:
        sick = patient()
        exam = _examined(sick.model, sick.loader, request)
        story = sick.told(exam)
        data = {**exam.to_dict(), "planted": [asdict(fault) for fault in sick.faults]}
    else:
        batches = _batches(request)
        exam = _examined(load_model(request.model), batches, request)
        data = exam.to_dict()
    parts = [story, str(exam)]
    if wanted is not None:
        found = exam.recommend(wanted, train_steps=request.train_steps, budget=request.budget)
        parts.append(f"\n{found}")
        data["recommendation"] = found.to_dict()
    return exam, "\n".join(part for part in parts if part), data


def _check_batches(request: Request) -> None:
    """Raise unless there is a model with one way to get at batches, or nothing at all."""
    ways = [name for name, value in (("--loader", request.loader), ("--data", request.data)) if value is not None]
    if request.model is None and ways:
        raise OptionError(
            f"examine expects a model with {ways[0]}: got none; name it first, or leave out {ways[0]} to see an example"
        )
    if request.model is not None and len(ways) != 1:
        raise OptionError(f"examine expects --loader or --data, where batches are from: got {'both' if ways else 'neither'}")
    if request.data is None and (request.root is not None or request.batch_size is not None):
        raise OptionError("examine expects --root and --batch-size with --data: got them without; a loader has its own")


def _batches(request: Request) -> Iterable[Any]:
    if request.loader is not None:
        return load_loader(request.loader)
    return held_out(str(request.data), request.root, 32 if request.batch_size is None else request.batch_size)


def _examined(model: Any, loader: Any, request: Request) -> Examination:
    only_recommended = request.recommend is not None and request.depth == "default"
    budget = None if only_recommended else request.budget
    return examine(model, loader, batches=request.batches, depth=request.depth, budget=budget)

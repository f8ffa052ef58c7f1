"""What `normsmith examine` does: load, examine, recommend; the report as text and as data."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

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
    batches: int | None
    depth: Literal["default", "full"]
    budget: float | None
    recommend: str | None
    train_steps: int


def run(request: Request) -> tuple[Examination, str, dict[str, Any]]:
    """The examination, what to print of it, and its data."""
    if (request.model is None) != (request.loader is None):
        got, other = ("a model", "--loader") if request.loader is None else ("a loader", "a model")
        raise OptionError(f"examine expects a model and --loader, or neither: got only {got}; name {other} too")
    if request.train_steps and request.recommend is None:
        raise OptionError("examine expects --train-steps with --recommend, whose candidates it trains: got it without")
    wanted = None if request.recommend is None else parsed(request.recommend)
    story = ""
    if request.model is None or request.loader is None:
        sick = patient()
        exam = _examined(sick.model, sick.loader, request)
        story = sick.told(exam)
        data = {**exam.to_dict(), "planted": [asdict(fault) for fault in sick.faults]}
    else:
        exam = _examined(load_model(request.model), load_loader(request.loader), request)
        data = exam.to_dict()
    parts = [story, str(exam)]
    if wanted is not None:
        found = exam.recommend(wanted, train_steps=request.train_steps, budget=request.budget)
        parts.append(f"\n{found}")
        data["recommendation"] = found.to_dict()
    return exam, "\n".join(part for part in parts if part), data


def _examined(model: Any, loader: Any, request: Request) -> Examination:
    only_recommended = request.recommend is not None and request.depth == "default"
    budget = None if only_recommended else request.budget
    return examine(model, loader, batches=request.batches, depth=request.depth, budget=budget)

"""What a page says beside its charts: trials that failed, the recipe, where it ran, and notes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from normsmith.comparison.settings import counted, shortened
from normsmith.report import Code, Details, Table, Text

if TYPE_CHECKING:
    from normsmith.comparison.comparison import Comparison

_MOST = 40  # crashes told in full; those of the same kind are one
_ENVIRONMENT = ("source", "torch", "python", "machine", "processor")

Trial = Mapping[str, Any]


def failures(comparison: "Comparison") -> list[Any]:
    """Trials that diverged, and those that crashed, with their tracebacks."""
    known = [of for of in comparison.results.manifests.values() if not of["trial"].get("searching")]
    known.sort(key=lambda of: (*map(str, _named(of["trial"])), of["trial"]["seed"]))
    diverged = [of for of in known if of["status"] == "diverged"]
    pieces: list[Any] = []
    if diverged:
        rows = [[*_named(of["trial"]), of["trial"]["seed"], of["accuracy"] and 100 * of["accuracy"]] for of in diverged]
        caption = "Diverged, counted with the accuracy they came to"
        pieces.append(Table(["normalizer", "batch", "data", "model", "seed", "accuracy, %"], rows, caption))
    crashes: dict[tuple[str, str], list[Trial]] = {}
    for of in known:
        if of["status"] == "crashed":
            key = str(of.get("error") or "no reason given"), str(of.get("traceback") or "")
            crashes.setdefault(key, []).append(of["trial"])
    if crashes:
        number = sum(map(len, crashes.values()))
        pieces.append(Text(f"{counted(number, 'trial')} crashed and {'has' if number == 1 else 'have'} no accuracy."))
    ordered = sorted(crashes.items(), key=lambda item: -len(item[1]))
    pieces += [_crash(*key, trials) for key, trials in ordered[:_MOST]]
    if len(ordered) > _MOST:
        pieces.append(Text(f"{len(ordered) - _MOST} more kinds of crashes are in report.json, under `trials`."))
    return pieces


def _crash(error: str, traceback: str, trials: list[Trial]) -> Details:
    who = [
        f"{normalizer} at batch {batch}, seed {t['seed']} ({data}, {model})"
        for t in trials
        for normalizer, batch, data, model in [_named(t)]
    ]
    first = error.partition("\n")[0]
    return Details(
        f"{counted(len(trials), 'trial')}: {first}",
        [Text("; ".join(who[:12]) + ("" if len(who) <= 12 else " …")), Code(traceback or error)],
    )


def _named(trial: Trial) -> list[Any]:
    return [trial["label"], trial["batch"], trial["dataset"], trial["model"]]


def recipe(comparison: "Comparison") -> list[Any]:
    """What was asked for."""
    if comparison.recipe is None:
        return [Text("No recipe lies in the folder; what is known of the trials is in the tables.")]
    rows = [[name, value] for name, value in _flat(comparison.recipe)]
    return [Table(["recipe", "value"], rows, shown=40)]


def _flat(part: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """A recipe line by line: what is nested under names with dots."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(part, list) and any(isinstance(item, Mapping) and name == "optimizers" for item in part):
        for at, item in enumerate(part):
            yield from _flat(item, name if len(part) == 1 else f"{name}.{at}")
    elif part is not None and part != []:
        yield name, ", ".join(map(_spoken, part)) if isinstance(part, list) else _spoken(part)


def _spoken(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {item or 'as it is'}" for key, item in value.items()) + "}"
    return str(value)


def environment(comparison: "Comparison") -> list[Any]:
    """Versions and machines, each with the number of trials that ran there."""
    known = list(comparison.results.manifests.values())
    rows = []
    for name in _ENVIRONMENT:
        counts = Counter(str(of.get("environment", {}).get(name) or "not known") for of in known)
        each = [
            value if len(counts) == 1 else f"{value} ({counted(number, 'trial')})" for value, number in counts.most_common()
        ]
        rows.append([name, shortened(each, 8)])
    began, ended = (_moments(known, name) for name in ("started", "ended"))
    if began and ended:
        rows.append(["between", f"{_when(min(began))} and {_when(max(ended))}"])
    return [Table(["where it ran", "value"], rows)]


def _moments(known: Iterable[Trial], name: str) -> list[float]:
    return [float(of[name]) for of in known if of.get(name) is not None]


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def notes(comparison: "Comparison") -> list[Any]:
    """What was left out, or counts although it went wrong; and what the data sets say of themselves."""
    own = dict.fromkeys(note for of in comparison.results.manifests.values() for note in of.get("notes") or [])
    found = [*comparison.notes, *own]
    return [Text("\n\n".join(found))] if found else []

"""`Results`: the trials of any number of folders, as data frames; what is not whole there is left out and named."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from normsmith.errors import ResultsError
from normsmith.trials.files import COLUMNS, Folder

# What a row of `trials` has of its manifest: everything that tells one trial from another, and what came of it.
_OF_TRIAL = {
    "dataset": pl.String,
    "model": pl.String,
    "label": pl.String,
    "batch": pl.Int64,
    "statistics_batch": pl.Int64,
    "optimizer": pl.String,
    "learning_rate": pl.Float64,
    "seed": pl.Int64,
    "epochs": pl.Int64,
    "steps": pl.Int64,
    "searching": pl.Boolean,
    "target_accuracy": pl.Float64,
}
_OF_RESULT = {
    "status": pl.String,
    "accuracy": pl.Float64,
    "parameters": pl.Int64,
    "memory": pl.Int64,
    "ended": pl.Float64,
    "error": pl.String,
}
_OF_TIMING = ("seconds", "seconds per step", "seconds to target")
_WORKED_OUT = {"machine": pl.String, "rest": pl.String}
_IN_LABEL = {"normalizer", "reparametrize", "normalize_gradients"}  # what is compared, and named by the label
_NO_MATTER = {"record", "threads", "keep_weights"}  # of `[training]`: what does not change an accuracy


@dataclass(frozen=True, eq=False)
class Results:
    """`trials`: a row each, with its manifest's numbers; `manifests` by identity; `notes`: what was left out, and why."""

    trials: pl.DataFrame
    manifests: dict[str, dict[str, Any]]
    paths: dict[str, Path]  # of the records, by identity
    notes: tuple[str, ...]

    def records(self, *names: str, layers: bool = False) -> pl.DataFrame:
        """The records of those names of all trials: identity, epoch, step, layer, name, value."""
        found = self.scan()
        if names:
            found = found.filter(pl.col("name").is_in(names))
        if not layers:
            found = found.filter(pl.col("layer") == "")
        return found.select("identity", *COLUMNS).collect()

    def scan(self) -> pl.LazyFrame:
        """All records, unread yet, with their row: of a trial, rows are in the order in which they were recorded."""
        if not self.paths:
            return pl.LazyFrame(schema={"identity": pl.String, "row": pl.UInt32, **COLUMNS})
        paths = [str(path) for path in self.paths.values()]
        found = pl.scan_parquet(paths, include_file_paths="identity", row_index_name="row")
        return found.with_columns(pl.col("identity").str.extract(r"([0-9a-f]+)\.parquet$"))


def load(*folders: str | Path, only: Collection[str] | None = None) -> Results:
    """The results of these folders together; a trial that lies in several is taken once. `only`: those with these identities."""
    manifests: dict[str, dict[str, Any]] = {}
    paths: dict[str, Path] = {}
    faults: dict[Path, str] = {}
    wanted = None if only is None else set(only)
    opened = [_opened(given) for given in folders]
    for folder in opened:
        for path in sorted(folder.trials.glob("*.json")):
            if path.stem in manifests or (wanted is not None and path.stem not in wanted):
                continue
            manifest, fault = _read(folder, path)
            if manifest is None:
                faults[path] = fault
            else:
                manifests[path.stem], paths[path.stem] = manifest, folder.trials / f"{path.stem}.parquet"
    notes = [f"{path} left out: {fault}" for path, fault in faults.items() if path.stem not in manifests]
    for folder in opened:
        notes += _unfinished(folder, set(manifests), wanted)
    sources = sorted({str(manifest.get("environment", {}).get("source")) for manifest in manifests.values()})
    if len(sources) > 1:
        notes.append(f"trials of {len(sources)} versions of the source stand side by side: {', '.join(sources)}")
    return Results(_table(manifests.items()), manifests, paths, tuple(notes))


def _opened(given: str | Path) -> Folder:
    folder = Folder(given)
    if not folder.path.is_dir():
        raise ResultsError(
            f"a folder of results is expected: got {str(folder.path)!r}, which is not there; normsmith compare makes one"
        )
    return folder


def _unfinished(folder: Folder, known: set[str], wanted: set[str] | None) -> list[str]:
    """A note of trials that have a checkpoint, or records, and no manifest."""
    begun = {path.stem for path in (*folder.running.glob("*.pt"), *folder.trials.glob("*.parquet"))}
    begun -= known | {path.stem for path in folder.trials.glob("*.json")}
    if wanted is not None:
        begun &= wanted
    if not begun:
        return []
    what = "1 trial is" if len(begun) == 1 else f"{len(begun)} trials are"
    return [
        f"{what} not finished in {folder.path}: under way, interrupted or copied in part; normsmith compare goes on with them"
    ]


def _read(folder: Folder, path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except ValueError:
        return None, "is not whole"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("trial"), dict):
        return None, "is no manifest of a trial"
    fault = folder.fault(manifest)
    return (None, fault) if fault else (manifest, "")


def _table(manifests: Iterable[tuple[str, dict[str, Any]]]) -> pl.DataFrame:
    rows = [
        {
            "identity": identity,
            **{name: manifest["trial"].get(name) for name in _OF_TRIAL},
            **{name: manifest.get(name) for name in _OF_RESULT},
            **{name: manifest.get("timing", {}).get(name) for name in _OF_TIMING},
            **_worked_out(manifest),
        }
        for identity, manifest in manifests
    ]
    schema = {"identity": pl.String, **_OF_TRIAL, **_OF_RESULT, **dict.fromkeys(_OF_TIMING, pl.Float64), **_WORKED_OUT}
    return pl.DataFrame(rows, schema=schema, orient="row").rename({"label": "normalizer"})


def _worked_out(manifest: dict[str, Any]) -> dict[str, str]:
    """Where a trial ran; and the rest of its settings, as JSON, so that only like is compared with like."""
    environment, trial = manifest.get("environment", {}), manifest["trial"]
    rest = {name: value for name, value in trial.items() if name not in _OF_TRIAL and name not in _IN_LABEL}
    training = {name: value for name, value in rest.get("training", {}).items() if name not in _NO_MATTER}
    return {
        "machine": f"{environment.get('machine')}, {environment.get('processor')}",
        "rest": json.dumps({**rest, "training": training}, sort_keys=True),
    }

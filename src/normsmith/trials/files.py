"""The folder of results: one Parquet file and one manifest per trial, each written whole or not at all, any number of writers.

DIR/trials/ID.parquet      records: epoch, step, layer, name, value
DIR/trials/ID.json         manifest: the trial, its status and score, times, the environment; written last
DIR/recipe.json            the recipe that was last run here
DIR/weights/ID.pt          the model's state at the end, where the recipe wants it kept
DIR/running/ID.pt          checkpoint of a trial under way
DIR/running/ID.lock        held by the process that runs it; let go by the system if that dies
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from normsmith import writing
from normsmith.errors import ResultsError

SCHEMA = 1
COLUMNS = {"epoch": pl.Int32, "step": pl.Int64, "layer": pl.String, "name": pl.String, "value": pl.Float64}


Record = tuple[int, int, str, str, float]


class Folder:
    """Where the results of trials are."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trials, self.running, self.weights = (self.path / part for part in ("trials", "running", "weights"))

    def prepare(self) -> None:
        """Make it, or say why not."""
        for part in (self.trials, self.running):
            _or_say(lambda part=part: part.mkdir(parents=True, exist_ok=True), part)  # type: ignore[misc]

    def manifest(self, identity: str) -> dict[str, Any] | None:
        """That of a finished trial, None where there is none, or its records are not whole."""
        try:
            found = json.loads((self.trials / f"{identity}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and not self.fault(found) else None

    def fault(self, manifest: dict[str, Any]) -> str:
        """What is wrong with the files of a manifest, nothing if they are whole."""
        if manifest.get("schema") != SCHEMA:
            return f"written by another version (schema {manifest.get('schema')!r}, expected {SCHEMA})"
        path = self.trials / f"{manifest.get('identity')}.parquet"
        records = manifest.get("records")
        if not isinstance(records, dict):
            return "does not say what its records are"
        try:
            content = path.read_bytes()
        except OSError:
            return f"{path.name} is missing"
        if len(content) != records.get("bytes"):
            return f"{path.name} has {len(content)} bytes of {records.get('bytes')}"
        whole = hashlib.sha256(content).hexdigest() == records.get("sha256")
        return "" if whole else f"{path.name} is not what was written"

    def finish(self, identity: str, manifest: dict[str, Any], records: list[Record]) -> None:
        """Write the results of a trial, records first."""
        path = self.trials / f"{identity}.parquet"
        table = pl.DataFrame(records, schema=COLUMNS, orient="row")
        write_whole(path, table.write_parquet)
        content = path.read_bytes()
        described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"schema": SCHEMA, "identity": identity, **manifest, "records": described}
        text = json.dumps(manifest, indent=2)
        write_whole(self.trials / f"{identity}.json", lambda part: part.write_text(text))
        (self.running / f"{identity}.pt").unlink(missing_ok=True)

    def discard(self, identity: str) -> None:
        """Forget what there is of a trial, the manifest first: without one, nothing counts."""
        for path in (
            self.trials / f"{identity}.json",
            self.trials / f"{identity}.parquet",
            self.running / f"{identity}.pt",
            self.weights / f"{identity}.pt",
        ):
            _or_say(lambda path=path: path.unlink(missing_ok=True), path)  # type: ignore[misc]

    def recipe(self) -> dict[str, Any] | None:
        """The one that was last run here, None if it cannot be read."""
        try:
            found = json.loads((self.path / "recipe.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def save_checkpoint(self, identity: str, state: dict[str, Any]) -> None:
        """Keep the state of a trial under way."""
        _save(self.running / f"{identity}.pt", state)

    def save_weights(self, identity: str, state: dict[str, Any]) -> None:
        """Keep the state of a model at the end of its trial."""
        _or_say(lambda: self.weights.mkdir(exist_ok=True), self.weights)
        _save(self.weights / f"{identity}.pt", state)

    def load_weights(self, identity: str) -> dict[str, Any]:
        """The state of the model of a trial at its end."""
        import torch  # noqa: PLC0415

        path = self.weights / f"{identity}.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise ResultsError(
                f"the weights of a trial are expected in {str(path)!r}: {error.strerror}; say keep_weights = true in [training]"
            ) from None
        return state

    def checkpoint(self, identity: str) -> dict[str, Any] | None:
        """The state of an interrupted trial; none if there is none, or it cannot be read, which means to start anew."""
        import torch  # noqa: PLC0415

        path = self.running / f"{identity}.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # noqa: BLE001  (a file cut short fails in many ways)
            return None
        return state if isinstance(state, dict) else None


def _save(path: Path, state: dict[str, Any]) -> None:
    import torch  # noqa: PLC0415  (who only reads results needs none)

    write_whole(path, lambda part: torch.save(state, part))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole; where that fails, say what is to be done."""
    _or_say(lambda: writing.write_whole(path, write), path)


def _or_say(act: Callable[[], Any], path: Path) -> None:
    """Do what writes, and where that fails, say so in a sentence."""
    try:
        act()
    except OSError as error:
        raise ResultsError(
            f"{str(path.parent)!r} is expected to take results: got {error.strerror or error}; what is finished there is intact, "
            "run the same command again once there is room"
        ) from error
    except RuntimeError as error:  # torch's writer
        raise ResultsError(
            f"{str(path.parent)!r} is expected to take results: got {str(error).partition(chr(10))[0]}"
        ) from error

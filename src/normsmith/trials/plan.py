"""What a recipe amounts to: `Trial`, one training, with an identity that its results are kept under; and the grid of them."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import normsmith
from normsmith.trials.labels import label_of
from normsmith.trials.names import is_code
from normsmith.trials.recipe import Optimizer, Recipe


@dataclass(frozen=True)
class Trial:
    """One training, fully determined: equal trials give equal bits on a CPU."""

    dataset: str
    model: str
    normalizer: str | tuple[tuple[str, str | None], ...]  # a mapping, as pairs
    batch: int
    statistics_batch: int
    seed: int
    epochs: int | None
    steps: int | None
    optimizer: str  # its name
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: tuple[tuple[str, Any], ...]
    training: tuple[tuple[str, Any], ...]
    target_accuracy: float | None = None
    searching: bool = False  # one of a search of learning rates: judged on a part of the training set
    reference_batch: int | None = None
    algorithm: tuple[tuple[str, Any], ...] = (("name", "supervised"),)
    reparametrize: str | None = None
    normalize_gradients: str | None = None

    @property
    def algorithm_name(self) -> str:
        """How it learns."""
        return str(dict(self.algorithm)["name"])

    @property
    def label(self) -> str:
        """The normalizer as results name it, with what else is done to weights and gradients."""
        normalizer = self.normalizer if isinstance(self.normalizer, str) else dict(self.normalizer)
        return label_of(normalizer, self.reparametrize, self.normalize_gradients)

    @property
    def title(self) -> str:
        """What people call it."""
        rate = f" rate {self.learning_rate:g}" if self.searching else ""
        return f"{self.dataset} {self.model} {self.label} batch {self.batch} seed {self.seed}{rate}"

    @property
    def step_size(self) -> float:
        """The learning rate at this batch size."""
        return self.learning_rate * (self.batch / self.reference_batch if self.reference_batch else 1.0)

    @property
    def group(self) -> tuple[Any, ...]:
        """What trials have in common that differ in the normalizer and the seed alone."""
        return self.dataset, self.model, self.batch, self.statistics_batch, self.optimizer

    @property
    def ranks(self) -> int:
        """How many processes do it together."""
        return int(dict(self.training).get("ranks", 1))

    def option(self, name: str) -> Any:
        """A setting of `[training]`."""
        return dict(self.training)[name]

    @cached_property
    def identity(self) -> str:
        """Of everything that determines the result, and of the source that computes it."""
        known = {**asdict(self), "source": source_version(), "code": _code(self.model)}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        data = asdict(self)
        if not isinstance(self.normalizer, str):
            data["normalizer"] = dict(self.normalizer)
        parts: dict[str, Any] = {part: dict(getattr(self, part)) for part in _PARTS}
        return {**data, **parts, "label": self.label}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Trial":
        """The other way."""
        data = {key: value for key, value in data.items() if key != "label"}
        if isinstance(data["normalizer"], dict):
            data["normalizer"] = tuple(data["normalizer"].items())
        return Trial(**{**data, **{part: _frozen(data[part]) for part in _PARTS}})


_PARTS = ("schedule", "training", "algorithm")


def _frozen(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Settings as pairs that can be told apart and hashed."""
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items())


@cache
def source_version() -> str:
    """The version of this package, and a digest of what it is made of: an edited checkout is another."""
    root = Path(normsmith.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in _NOT_IN_TRIALS:
            continue
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{normsmith.__version__}+{digest.hexdigest()[:12]}"


_NOT_IN_TRIALS = {"bench", "cli.py", "commands", "comparison", "doctor", "report", "integrations"}


def _code(model: str) -> str:
    """A digest of the file that a model of the user's is in, so that an edited one is another."""
    source = Path(model.partition("(")[0].rpartition(":")[0])
    return hashlib.sha256(source.read_bytes()).hexdigest()[:12] if is_code(model) and source.suffix == ".py" else ""


def plan(recipe: Recipe, device: str, ranks: int = 1) -> list[Trial]:
    """All trials of a recipe with one learning rate, and the first stage of those with several: the search.

    Of several `ranks` each does a part of every trial. Sums round differently then, and random layers draw other numbers, so that it
    belongs to the identity of a trial, as `threads` does.
    """
    return list(_trials(recipe, device, ranks))


def _trials(recipe: Recipe, device: str, ranks: int) -> Iterator[Trial]:
    training = {**recipe.training.model_dump(mode="json"), "device": device, **({"ranks": ranks} if ranks > 1 else {})}
    if training["ema"] is None:
        training["ema"] = recipe.algorithm.ema
    axes = itertools.product(recipe.all_seeds, recipe.datasets, recipe.models, recipe.optimizers, recipe.batch_sizes)
    for seed, dataset, model, optimizer, batch in axes:
        for normalizer, coordinates, gradients in recipe.contestants:
            trial = Trial(
                dataset,
                model,
                normalizer if isinstance(normalizer, str) else tuple(normalizer.items()),
                batch,
                min(batch, recipe.statistics_batch or batch),
                seed,
                recipe.epochs,
                recipe.steps,
                optimizer.name,
                0.0,
                optimizer.momentum,
                optimizer.weight_decay,
                _frozen(recipe.schedule.model_dump(mode="json")),
                _frozen(training),
                recipe.target_accuracy,
                reference_batch=optimizer.reference_batch,
                algorithm=_frozen(recipe.algorithm.model_dump(mode="json")),
                reparametrize=coordinates,
                normalize_gradients=gradients,
            )
            yield from _with_rates(trial, optimizer, first=seed == recipe.all_seeds[0])


def _with_rates(trial: Trial, optimizer: Optimizer, *, first: bool) -> Iterator[Trial]:
    """The trial at its learning rate; or, once for all seeds, one for each rate to try."""
    if isinstance(optimizer.learning_rate, float):
        yield replace(trial, learning_rate=optimizer.learning_rate)
    elif first:
        for rate in optimizer.learning_rate:
            yield replace(trial, learning_rate=rate, searching=True)


def after_search(recipe: Recipe, searched: dict[Trial, float | None]) -> list[Trial]:
    """The trials at the learning rates that a search has chosen: the best score of each, the smaller rate on a tie."""
    best: dict[Trial, tuple[float, float]] = {}
    for trial, score in searched.items():
        key = replace(trial, learning_rate=0.0)
        value = (-1.0 if score is None else score, -trial.learning_rate)
        best[key] = max(best.get(key, value), value)
    chosen = [replace(trial, learning_rate=-rate, searching=False) for trial, (_, rate) in best.items()]
    return [replace(trial, seed=seed) for seed in recipe.all_seeds for trial in chosen]

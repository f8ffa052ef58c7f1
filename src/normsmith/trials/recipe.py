"""`Recipe`: what is to be trained, as a TOML file or a Python object; every mistake in it is found before anything runs, all at once."""

import itertools
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from normsmith.errors import InputError, OptionError
from normsmith.trials._mistakes import explain
from normsmith.trials._part import CONFIG, Positive, Share
from normsmith.trials.algorithm_settings import Settings, SupervisedSettings
from normsmith.trials.coordinates import Coordinates, gradients_of
from normsmith.trials.labels import NONE, label_of
from normsmith.trials.names import (
    Augmentations,
    checked_coordinates,
    checked_dataset,
    checked_gradients,
    checked_model,
    checked_normalizer,
)

Normalizer = Annotated[str | dict[str, str | None], BeforeValidator(checked_normalizer)]
_AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)


class _Part(BaseModel):
    model_config = CONFIG


class Optimizer(_Part):
    """How weights are updated. Several learning rates are a search, with the same budget for every normalizer."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2)] = 0.05
    """One for all; or several, tried for every normalizer and batch size on a part of the training set, and the best is taken."""
    reference_batch: Positive | None = None
    """If given, the learning rate is that of this batch size, and goes up and down in proportion to the batch."""
    momentum: Share = 0.9
    """Of sgd; the first beta of adam."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """On weights only: `ns.param_groups`."""


class Schedule(_Part):
    """What becomes of the learning rate."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup: Share = 0.0
    """Share of the steps in which it rises from 0."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.75]
    """Shares of the steps after which `step` divides it by `factor`."""
    factor: Annotated[float, Field(gt=1)] = 10.0


class Training(_Part):
    """How a trial runs."""

    augment: Augmentations | None = None
    """As in `"crop:padding=4, flip, cutout:size=8"`."""
    amp: bool = False
    """Forward under autocast in bfloat16."""
    channels_last: bool = False
    ema: Share | None = None
    """Decay of an average of the weights, which is evaluated instead of them; 0 for none, by default what the algorithm wants."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    patience: Positive | None = None
    """Stop after so many epochs without a better training loss."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training set that a search of learning rates is judged on."""
    record: list[Literal["ratios", "gains", "moments"]] = []
    """Per layer at the end of every epoch: shares of a switchable norm, gains of a Kalman chain, moments of what normalizers read."""
    keep_weights: bool = False
    """Keep the weights at the end, as weights/ID.pt: `load_trained` gives the model."""
    threads: Positive = 1
    """Of one trial; sums round differently with another number, so it belongs to the identity of a trial."""
    device: str = "auto"
    """cpu, cuda, cuda:0; auto is cuda where there is one."""


class Recipe(_Part):
    """A grid: every normalizer with every dataset, model, batch size, optimizer and seed."""

    name: str = "comparison"
    datasets: Annotated[list[Annotated[str, BeforeValidator(checked_dataset)]], Field(min_length=1)] = ["digits"]
    """As `ns.data.load` takes them."""
    models: Annotated[list[Annotated[str, BeforeValidator(checked_model)]], Field(min_length=1)] = ["shallow_cnn"]
    """As `ns.models.make` takes them, or package.module:factory of a model whose normalizers are converted."""
    normalizers: Annotated[list[Normalizer], Field(min_length=1)]
    """As `ns.make` takes them, "none" for none; or a mapping as `ns.convert` takes it, {backbone = "frozen", head = "switchable"}."""
    reparametrize: Annotated[list[Annotated[str, BeforeValidator(checked_coordinates)]], Field(min_length=1), _AsList] = [NONE]
    """As `ns.reparametrize` takes them, each with every normalizer, "none" for plain layers; natural ones with options of their refreshes
    too, as in "wnn:eps=0.1,every=50"."""
    normalize_gradients: Annotated[list[Annotated[str, BeforeValidator(checked_gradients)]], Field(min_length=1), _AsList] = [
        NONE
    ]
    """As `ns.normalize_gradients` takes them, "centralize" or "clip:max_norm=0.5", each with all of the above; "none" for none."""
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = [32]
    """Samples for a gradient."""
    statistics_batch: Positive | None = None
    """Samples for a statistic: larger batches go through the model in parts of this size. By default the whole batch."""
    epochs: Positive | None = None
    steps: Positive | None = None
    """Instead of epochs: updates of the weights."""
    algorithm: Settings = SupervisedSettings()
    """How it learns: "supervised", or "adamatch" on a pair of domains; or a table, {name = "adamatch", threshold = 0.8}."""
    optimizers: Annotated[list[Optimizer], Field(min_length=1)] = [Optimizer()]
    schedule: Schedule = Schedule()
    training: Training = Training()
    seeds: Positive | Annotated[list[int], Field(min_length=1)] = 3
    """How many, or which."""
    baseline: str | None = None
    """The normalizer that others are compared with; by default the first."""
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """For the time until a trial reaches it."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            got = "both" if self.epochs else "neither"
            raise ValueError(f"expects either epochs or steps: got {got}; epochs = 10 is a start")
        labels = [label_of(*contestant) for contestant in self.contestants]
        axes = {
            "normalizers": map(label_of, self.normalizers),
            "reparametrize": [name if name == NONE else str(Coordinates.of(name)) for name in self.reparametrize],
            "normalize_gradients": [name if name == NONE else str(gradients_of(name)) for name in self.normalize_gradients],
            "batch_sizes": map(str, self.batch_sizes),
            "seeds": map(str, self.all_seeds),
        }
        for what, values in axes.items():
            twice = sorted(value for value, times in Counter(values).items() if times > 1)
            if twice:
                raise ValueError(f"expects each of {what} once: got {', '.join(twice)} several times")
        if self.baseline is not None and self.baseline not in labels:
            raise ValueError(f"expects baseline among the normalizers {', '.join(labels)}: got {self.baseline!r}")
        ema = self.algorithm.ema if self.training.ema is None else self.training.ema
        moving = [name for name in self.reparametrize if name != NONE and Coordinates.of(name).every]
        if ema and moving:
            raise ValueError(
                f"expects no average of weights with {moving[0]}, whose coordinates change under it: got ema = {ema:g}; "
                "say ema = 0 in [training], or every=none behind the name"
            )
        self.algorithm.check(self.datasets, self.statistics_batch, self.training.augment)
        part = self.statistics_batch
        for batch in self.batch_sizes:
            if part is not None and batch > part and batch % part:
                raise ValueError(
                    f"expects batch_sizes that statistics_batch divides: got {batch} and {part}; "
                    "a last part of another size would have other statistics"
                )
        return self

    @property
    def all_seeds(self) -> list[int]:
        """Every seed."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def contestants(self) -> list[tuple[str | dict[str, str | None], str | None, str | None]]:
        """What is compared: every normalizer, way to place layers and way to normalize gradients together; None is for none."""
        coordinates, gradients = (
            [None if name == NONE else name for name in names] for names in (self.reparametrize, self.normalize_gradients)
        )
        return list(itertools.product(self.normalizers, coordinates, gradients))

    @property
    def reference(self) -> str:
        """The label of what others are compared with."""
        return self.baseline or label_of(*self.contestants[0])

    def to_dict(self) -> dict[str, Any]:
        """As plain data, defaults written out."""
        return self.model_dump(mode="json")


def read(source: "Recipe | dict[str, Any] | str | Path") -> Recipe:
    """A recipe from a TOML file or plain data; what is wrong with it is one error that lists everything."""
    if isinstance(source, Recipe):
        return source
    if isinstance(source, dict):
        data, text, where = source, "", "the recipe"
    elif isinstance(source, str | Path):
        data, text, where = _parsed(Path(source))
    else:
        raise OptionError(f"compare expects a recipe, a mapping or the path of a TOML file: got a {type(source).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise OptionError(explain(error, where, text, Recipe)) from None


def _parsed(path: Path) -> tuple[dict[str, Any], str, str]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise InputError(
            f"compare expects a recipe in TOML: got {str(path)!r} ({reason}); normsmith compare --init prints one"
        ) from None
    try:
        return tomllib.loads(text), text, str(path)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is expected to be TOML: {error}") from None


def json_schema() -> dict[str, Any]:
    """The schema of a recipe, for editors."""
    return Recipe.model_json_schema()

"""The settings of every algorithm, as a recipe has them: `algorithm = "adamatch"`, or a table with `name` and some of them."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from normsmith.data.load import ARROW
from normsmith.trials._part import CONFIG, Positive, Share
from normsmith.trials.names import Augmentations


class _Algorithm(BaseModel):
    """What all have."""

    model_config = CONFIG

    ema: ClassVar[float] = 0.0  # decay of the average that is evaluated, where the recipe has none

    def check(self, datasets: Sequence[str], statistics_batch: int | None, augment: str | None) -> None:
        """Raise for what has no meaning in the rest of a recipe."""


class SupervisedSettings(_Algorithm):
    """Labelled samples, the loss of their task: what most people call training."""

    name: Literal["supervised"] = "supervised"


class AdaMatchSettings(_Algorithm):
    """AdaMatch: labels from one domain, samples without labels from another; for data sets that are pairs, "mnist -> mnist-m"."""

    ema: ClassVar[float] = 0.999

    name: Literal["adamatch"] = "adamatch"
    mu: Annotated[float, Field(ge=0)] = 1.0
    """What the target's loss counts from the middle of training on; it rises from 0."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A sample of the target has a label if the network is so sure of it, as a share of how sure it is of the source's on average."""
    unlabelled_ratio: Positive = 3
    """Samples of the target for each of the source."""
    source_decay: Share = 0.999
    """Of the average of class probabilities over batches of the source."""
    target_batches: Positive = 128
    """Over how many batches those of the target are averaged."""
    weak: Augmentations | None = None
    """How samples are changed that give labels, as in `"crop:padding=2"`; by default moved by an eighth of their size."""
    strong: Augmentations | None = None
    """How samples are changed that learn them; by default moved, turned, sheared, scaled, recoloured, and a part is cut out."""

    def check(self, datasets: Sequence[str], statistics_batch: int | None, augment: str | None) -> None:
        """Labels are of one domain and of a whole batch, samples of two."""
        for dataset in datasets:
            if ARROW not in dataset:
                raise ValueError(f'expects pairs of domains with adamatch, as in "mnist -> mnist-m": got {dataset!r}')
        if statistics_batch is not None:
            raise ValueError(
                f"expects no statistics_batch with adamatch, whose labels are of a whole batch: got {statistics_batch}; leave it out"
            )
        if augment is not None:
            raise ValueError(
                f"expects weak and strong in the table of adamatch, not augment in [training]: got {augment!r}; leave it out"
            )


ALGORITHMS: dict[str, type[_Algorithm]] = {"supervised": SupervisedSettings, "adamatch": AdaMatchSettings}


def _as_table(value: Any) -> Any:
    """A name alone as the table it stands for; an error that suggests the nearest for a name that is not known."""
    if isinstance(value, _Algorithm):
        return value
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or "name" not in table:
        raise ValueError(f'expects the name of an algorithm, or a table with its name: got {value!r}; algorithm = "adamatch"')
    if table["name"] not in ALGORITHMS:
        near = difflib.get_close_matches(str(table["name"]), ALGORITHMS, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(ALGORITHMS)}"
        raise ValueError(f"expects the name of an algorithm: got {table['name']!r}; {advice}")
    return table


Settings = Annotated[Annotated[SupervisedSettings | AdaMatchSettings, Field(discriminator="name")], BeforeValidator(_as_table)]

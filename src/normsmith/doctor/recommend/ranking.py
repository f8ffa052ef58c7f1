"""Scores with intervals, and which of them can be told apart.

A score is the mean over batches. Its interval, and that of the difference of two candidates, are of 1000 resamples of batches, the same for
all candidates, widened for the number of batches as in Student's t (Hesterberg 2015): resamples of few batches scatter too little. Each
resample takes its batches of training out of one cut of the samples, so that no sample counts several times.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normsmith.doctor._students import students
from normsmith.doctor.recommend.trial import Measured

RESAMPLES = 1000
FEWEST = 4  # batches, for an interval


@dataclass(frozen=True)
class Score:
    """Of one candidate: how good, and by how much it is behind the first, each with its 95 % interval."""

    value: float
    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float

    @property
    def told_apart(self) -> bool:
        """Whether it is behind the first beyond chance."""
        return self.behind_low > 0


def ranked(found: Mapping[str, Measured], *, trained: bool, seed: int) -> dict[str, Score]:
    """The candidates from the best to the worst, in evaluation after training, else by the worse of evaluation and training."""
    values = {name: _value(m.evaluation.mean(), m.training.mean(), trained) for name, m in found.items()}
    order = sorted(found, key=lambda name: float(values[name]))
    batches = next(iter(found.values())).evaluation.shape[0]
    drawn = _draws(found, trained, seed)
    first = order[0]
    scores = {}
    for name in order:
        value, behind = float(values[name]), float(values[name] - values[first])
        around, apart = _interval(drawn[name], value, batches), _interval(drawn[name] - drawn[first], behind, batches)
        scores[name] = Score(value, *around, behind, *(apart if name != first else (0.0, 0.0)))
    return scores


def _value(evaluation: Tensor, training: Tensor, trained: bool) -> Tensor:
    return evaluation if trained else torch.maximum(evaluation, training)


def _draws(found: Mapping[str, Measured], trained: bool, seed: int) -> dict[str, Tensor]:
    """The score in every resample."""
    generator = torch.Generator().manual_seed(seed)
    rounds, batches = next(iter(found.values())).training.shape
    one = torch.randint(batches, (RESAMPLES, batches), generator=generator)
    other = torch.randint(batches, (RESAMPLES, batches), generator=generator)
    cut = torch.randint(rounds, (RESAMPLES, 1), generator=generator)
    return {name: _value(m.evaluation[one].mean(1), m.training[cut, other].mean(1), trained) for name, m in found.items()}


def _interval(drawn: Tensor, value: float, batches: int) -> tuple[float, float]:
    if batches < FEWEST:
        return -math.inf, math.inf
    wider = students(batches) / 1.96 * math.sqrt(batches / (batches - 1))
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return value + wider * min(low - value, 0.0), value + wider * max(high - value, 0.0)

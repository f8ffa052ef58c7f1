"""Candidates, one after the other, on the same samples; then in order."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from normsmith.analysis._photograph import Randomness
from normsmith.doctor.recommend.constraints import Constraints, checked
from normsmith.doctor.recommend.pool import Pool
from normsmith.doctor.recommend.ranking import Score, ranked
from normsmith.doctor.recommend.recommendation import Ranked, Recommendation
from normsmith.doctor.recommend.trial import OPTIMIZER, Measured, Plan, copied, flat, milliseconds, try_out
from normsmith.doctor.subject import Subject
from normsmith.errors import InputError, OptionError
from normsmith.methods.catalog import parse
from normsmith.surgery._choice import candidates as normalizers
from normsmith.surgery._console import follow
from normsmith.surgery._models import refuse_wrapped
from normsmith.surgery._successor import check_target

USUAL = ("batch", "group", "layer", "renorm", "switchable", "filtered")
OF_TOKENS = ("layer", "rms", "dynamic_tanh", "batch")
BATCHES = 64  # that are enough to recalibrate, and to measure, where they are small
ROUNDS = 4  # cuts of the samples into batches: every sample has so many sets of mates


def recommend(
    subject: Subject,
    constraints: Mapping[str, Any] | None,
    train_steps: int,
    candidates: Sequence[str] | None,
    seed: int,
    budget: float | None,
) -> Recommendation:
    """What `Examination.recommend` says."""
    bounds = checked(constraints)
    if type(train_steps) is not int or train_steps < 0:
        raise OptionError(f"recommend expects train_steps as a number of steps from 0: got {train_steps!r}")
    if budget is not None and (type(budget) not in (int, float) or not math.isfinite(budget) or budget <= 0):
        raise OptionError(f"recommend expects budget as a number of seconds above 0: got {budget!r}")
    refuse_wrapped(subject.model, "recommend")
    names = _names(subject, candidates)
    randomness = Randomness(subject.model)
    try:
        torch.manual_seed(seed)
        plan, batch = _plan(subject, bounds, train_steps, seed)
        base = _milliseconds(subject, plan, bounds)
        found, others = _measured(subject, names, plan, bounds, budget)
    finally:
        randomness.put_back()
    slow = {
        n: m.milliseconds / base for n, m in found.items() if base and m.milliseconds > (bounds.max_slowdown or math.inf) * base
    }
    fit = {name: m for name, m in found.items() if name not in slow}
    scores = ranked(fit, trained=train_steps > 0, seed=seed) if fit else {}
    rows = [_row(name, fit[name], base, score, scores, batch) for name, score in scores.items()]
    for name, times in slow.items():
        reason = f"a step takes {times:.2g} times as long, max_slowdown is {bounds.max_slowdown:g}"
        rows.append(Ranked(name, "ruled out", reason, milliseconds=found[name].milliseconds, slowdown=times))
    unit: Literal["loss", "distance"] = "loss" if plan.with_loss else "distance"
    samples = sum(len(part) for part in plan.rounds[0])
    return Recommendation(
        type(subject.model).__name__, (*rows, *others), batch, samples, unit, train_steps, OPTIMIZER if train_steps else "", seed,
    )  # fmt: skip


def _milliseconds(subject: Subject, plan: Plan, bounds: Constraints) -> float | None:
    """What a step of the model as it is takes; None if it cannot train on such batches."""
    try:
        return milliseconds(subject, copied(subject.model).eval(), plan)
    except Exception as error:
        if bounds.max_slowdown is None:
            return None
        raise InputError(
            "recommend with max_slowdown expects a model that runs on batches of that size in training: got "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}; leave max_slowdown out"
        ) from error


def _names(subject: Subject, given: Sequence[str] | None) -> list[str]:
    """The candidates: those given; else the model's own method and the usual ones of its kind."""
    if given is not None:
        if isinstance(given, str) or not given or not all(isinstance(name, str) for name in given):
            raise OptionError(
                f'recommend expects candidates as names of the catalog, such as ["batch", "group"]: got {given!r}'
            )
        for name in given:
            check_target(name)
        return list(dict.fromkeys(given))
    sources = [c.source for c in normalizers(subject.model) if c.source is not None]
    tokens = sum(source.channels_last for source in sources) > len(sources) / 2
    own = [method for method, _ in Counter(source.method for source in sources).most_common(1)]
    return list(dict.fromkeys((*own, *(OF_TOKENS if tokens else USUAL))))


def _plan(subject: Subject, bounds: Constraints, train_steps: int, seed: int) -> tuple[Plan, int]:
    """Half of the samples to learn from, half to measure on, and how they are cut."""
    pool = Pool(subject.loader, subject.batches)
    size = bounds.batch or pool.first
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randperm(pool.size, generator=generator)
    number = min((pool.size // 2) // size, BATCHES)  # of the half that is measured on
    if number < 2:
        raise InputError(
            f"recommend expects at least {4 * size} samples for batches of {size}, half of them to measure on: got {pool.size}; give a "
            "longer loader, or a smaller constraint batch"
        )
    tested, learned = mixed[: number * size], mixed[number * size :]
    rounds = [list(torch.split(tested, size))]
    rounds += [list(torch.split(tested[torch.randperm(len(tested), generator=generator)], size)) for _ in range(ROUNDS - 1)]
    learning = [part for part in torch.split(learned, size) if len(part) == size][:BATCHES]
    lessons: list[Tensor] = []
    while len(lessons) < train_steps:
        again = learned[torch.randperm(len(learned), generator=generator)]
        lessons += [part for part in torch.split(again, size) if len(part) == size]
    model = copied(subject.model).eval()
    with torch.no_grad():
        first = pool.batch(rounds[0][0])
        missing = ""
        try:
            subject.value(model, subject.output(model, first), first)
        except InputError as error:
            missing = str(error)
        if missing and train_steps:
            raise InputError(f"recommend with train_steps expects a loss: got none, {missing}")
        outputs = [flat(subject.output(model, pool.batch(part))) for part in rounds[0]]
    reference = dict(zip(tested.tolist(), torch.cat(outputs), strict=True))
    spread = float(torch.cat(outputs).var(0, unbiased=False).sum().clamp_min(1e-300))
    return Plan(pool, learning, lessons[:train_steps], rounds, not missing, reference, spread, seed), size


def _measured(
    subject: Subject, names: Sequence[str], plan: Plan, bounds: Constraints, budget: float | None
) -> tuple[dict[str, Measured], list[Ranked]]:
    """What was measured, and rows for what was not."""
    found: dict[str, Measured] = {}
    others: list[Ranked] = []
    started, longest = time.perf_counter(), 0.0
    for name in follow(names, len(names), "recommending", Console(stderr=True)):
        if bounds.batch_independent and parse(name)[0].batch_dependent:
            others.append(
                Ranked(name, "ruled out", "in training a sample depends on its batch, and batch_independent is asked for")
            )
            continue
        before = time.perf_counter()
        if budget is not None and before - started + longest > budget:
            others.append(Ranked(name, "not measured", f"the budget of {budget:g} s was used up"))
            continue
        try:
            found[name] = try_out(subject, name, plan)
        except Exception as error:  # noqa: BLE001  (a candidate that fails is a row)
            others.append(Ranked(name, "failed", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))
        longest = max(longest, time.perf_counter() - before)
    return found, others


def _row(name: str, m: Measured, base: float | None, score: Score, scores: Mapping[str, Score], batch: int) -> Ranked:
    evaluation, training = float(m.evaluation.mean()), float(m.training.mean())
    reasons = []
    if m.noise > 0.1:
        reasons.append(f"outputs scatter by {m.noise:.2g} deviations with the mates in a batch of {batch}")
    elif m.noise < 1e-6:
        reasons.append("no dependence on the batch")
    if m.left:
        reasons.append(f"{len(m.left)} layers could not be converted: {', '.join(m.left)}")
    if abs(evaluation - training) > 0.1 * max(abs(evaluation), abs(training), 1e-12):
        reasons.append(f"{'evaluation' if evaluation > training else 'training'} is worse by {abs(evaluation - training):.2g}")
    if len(scores) > 1 and score.behind > 0:
        reasons.append(f"behind by {score.behind:.2g}" + ("" if score.told_apart else ", which may be chance"))
    return Ranked(
        name,
        "ranked",
        "; ".join(reasons),
        score.value, score.low, score.high, score.behind, score.behind_low, score.behind_high,
        evaluation, training, evaluation - training, m.noise, m.milliseconds, m.milliseconds / base if base else None,
    )  # fmt: skip

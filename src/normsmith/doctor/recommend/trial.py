"""One candidate on a copy of the model: converted, trained if that is asked for, recalibrated, and measured at a batch size."""

import copy
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from normsmith.doctor.full.modes import by_batch
from normsmith.doctor.recommend.pool import Pool
from normsmith.doctor.subject import Subject
from normsmith.errors import InputError, ModelError
from normsmith.surgery._models import tensors
from normsmith.surgery._statistics import is_frozen, keeps
from normsmith.surgery.convert import convert
from normsmith.surgery.recalibrate import recalibrate

FEATURES = 256  # of an output, that are compared
TIMINGS = 5
RATE = 1e-3
OPTIMIZER = f"Adam, lr {RATE:g}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What all candidates are measured on: samples by number, the same for each."""

    pool: Pool
    learning: list[Tensor]  # batches to recalibrate on
    lessons: list[Tensor]  # batches to train on, a step each
    rounds: list[list[Tensor]]  # the held-out samples, cut into batches of changing mates
    with_loss: bool
    reference: dict[int, Tensor]  # the outputs of the model as it is, by sample
    spread: float  # their variance
    seed: int


@dataclass(frozen=True, eq=False)
class Measured:
    """Losses, or distances to the model as it is, by batch."""

    evaluation: Tensor  # (batches,)
    training: Tensor  # (rounds, batches), in the statistics of training
    noise: float  # by how much an output changes with the mates, in deviations of the outputs over samples
    milliseconds: float  # of a step
    left: tuple[str, ...] = ()  # layers that could not be converted


def copied(model: nn.Module) -> nn.Module:
    """A copy that can be changed."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"recommend expects a model that copy.deepcopy can copy: got {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error


def try_out(subject: Subject, candidate: str, plan: Plan) -> Measured:
    """Everything that is measured of a candidate; raises what conversion, training or the model raise."""
    torch.manual_seed(plan.seed)
    conversion = convert(copied(subject.model), candidate)
    model = conversion.model
    if any(keeps(m) and not is_frozen(m) for m in model.modules()):
        recalibrate(model, [plan.pool.batch(part) for part in plan.learning], forward=subject.forward)
        if plan.lessons:
            _train(subject, model, plan)
            recalibrate(model, [plan.pool.batch(part) for part in plan.learning], forward=subject.forward)
    elif plan.lessons:
        _train(subject, model, plan)
    return replace(measure(subject, model, plan), left=tuple(row.layer for row in conversion.rows if row.new is None))


def _train(subject: Subject, model: nn.Module, plan: Plan) -> None:
    """A step of Adam for each lesson."""
    learned = [p for p in model.parameters() if p.requires_grad]
    if not learned:
        raise ModelError("recommend with train_steps expects parameters that require a gradient: got none")
    optimizer = torch.optim.Adam(learned, lr=RATE)
    model.train()
    for step, part in enumerate(plan.lessons):
        batch = plan.pool.batch(part)
        loss = subject.value(model, subject.output(model, batch), batch)
        if not bool(loss.isfinite()):
            raise InputError(f"its loss was not finite in step {step} of training")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def measure(subject: Subject, model: nn.Module, plan: Plan) -> Measured:
    """Evaluation on the first cut, the statistics of training on all of them, and the time of a step."""
    model.eval()
    with torch.no_grad():
        evaluation = torch.stack([_quality(subject, model, part, plan)[0] for part in plan.rounds[0]])
        seen, rows = [], []
        with by_batch(m for m in model.modules() if keeps(m)):
            for cut in plan.rounds:
                values, outputs = zip(*(_quality(subject, model, part, plan) for part in cut), strict=True)
                rows.append(torch.stack(values))
                seen.append(torch.cat(outputs)[torch.cat(cut).argsort()])
    every = torch.stack(seen)  # (rounds, samples, features)
    within = every.var(0).mean(0).sum() if len(seen) > 1 else every.new_zeros(())
    across = every.mean(0).var(0, unbiased=False).sum().clamp_min(torch.finfo(torch.float64).tiny)
    noise = float((within / across).sqrt())
    found = torch.stack(rows)
    if not bool(evaluation.isfinite().all() & found.isfinite().all()):
        raise InputError("its outputs are not finite")
    return Measured(evaluation, found, noise, milliseconds(subject, model, plan))


def flat(output: object) -> Tensor:
    """An output as (N, features), some of them where they are many, in float64."""
    whole = torch.cat(
        [t.detach().flatten(1) if t.dim() > 1 else t.detach().unsqueeze(-1) for t in tensors(output) if t.dim()], 1
    )
    return whole[:, :: -(-whole.shape[1] // FEATURES)].double().cpu()


def _quality(subject: Subject, model: nn.Module, part: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """The loss of a batch, or its distance to the model as it is; and its outputs."""
    batch = plan.pool.batch(part)
    output = subject.output(model, batch)
    found = flat(output)
    if plan.with_loss:
        return subject.value(model, output, batch).double().cpu(), found
    wanted = torch.stack([plan.reference[i] for i in part.tolist()])
    return ((found - wanted).square().sum(1).mean() / plan.spread).sqrt(), found


def milliseconds(subject: Subject, model: nn.Module, plan: Plan) -> float:
    """The quickest of some steps, forward and backward, in the statistics of training; its marks on the copy stay."""
    batch, best = plan.pool.batch(plan.rounds[0][0]), float("inf")
    with by_batch(m for m in model.modules() if keeps(m)), torch.enable_grad():
        for _ in range(1 + TIMINGS):
            started = time.perf_counter()
            output = subject.output(model, batch)
            value = subject.value(model, output, batch) if plan.with_loss else sum(t.square().mean() for t in tensors(output))
            if isinstance(value, Tensor) and value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
                if value.is_cuda:
                    torch.cuda.synchronize(value.device)
            best = min(best, time.perf_counter() - started)
            model.zero_grad(set_to_none=True)
    return best * 1e3

"""The training loop: plain, one for all algorithms; what is random in it depends on seed, epoch and step alone, or is in the checkpoint."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normsmith.methods._schedules import step_schedules
from normsmith.models.tasks import Task
from normsmith.surgery.param_groups import param_groups
from normsmith.trials.algorithms import Algorithm, Batch, Test, precision
from normsmith.trials.average import Average
from normsmith.trials.coordinates import Coordinates, normalize
from normsmith.trials.files import Record
from normsmith.trials.plan import Trial
from normsmith.trials.share import ALONE, Share

_WARM_UP = 3  # steps of a process that are left out of the times: kernels are compiled, memory is taken
_GRADIENTS_EVERY = 10  # steps between two looks at the norm of the gradient


@dataclass
class Run:
    """A training under way: what a checkpoint holds, and what it does not."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # of training, without evaluation
    records: list[Record] = field(default_factory=list)  # epoch, step, layer, name, value
    best_loss: float = math.inf
    epochs_since_best: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state,
            "random": torch.get_rng_state(),
            "random of cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.state = state["average"]
        torch.set_rng_state(state["random"].cpu())
        if state["random of cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["random of cuda"]])
        for name in _PLAIN:
            setattr(self, name, state[name])


_PLAIN = ("epoch", "step", "seconds", "records", "best_loss", "epochs_since_best")


def make_optimizer(model: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    """The optimizer of a trial, with what acts on its gradients and its state; weight decay is on weights only."""
    groups = param_groups(model, trial.weight_decay)
    optimizer: torch.optim.Optimizer
    if trial.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=trial.step_size, momentum=trial.momentum)
    else:
        kind = torch.optim.Adam if trial.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(groups, lr=trial.step_size, betas=(trial.momentum, 0.999))
    if trial.reparametrize is not None:
        Coordinates.of(trial.reparametrize).follow(model, optimizer)
    if trial.normalize_gradients is not None:
        normalize(optimizer, trial.normalize_gradients, model)
    return optimizer


def rate_at(trial: Trial, step: int, total: int) -> float:
    """The learning rate of the update number `step`, from 0, as a share of the full one."""
    schedule = dict(trial.schedule)
    rising: float = schedule["warmup"] * total
    if step < rising:
        return (step + 1) / (rising + 1)
    progress = (step - rising) / max(total - rising, 1)
    if schedule["name"] == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * progress)
    if schedule["name"] == "step":
        return float(schedule["factor"] ** -sum(progress >= milestone for milestone in schedule["milestones"]))
    return 1.0


def train_epoch(
    run: Run,
    trial: Trial,
    algorithm: Algorithm,
    batches: Iterator[Batch],
    total: int,
    tell: Callable[[int], None],
    share: Share = ALONE,
) -> dict[str, float]:
    """One pass over the batches, or up to step `total`; the mean loss and what steps cost."""
    run.model.train()
    clip = float(trial.option("clip"))
    scheduled = any(hasattr(module, "step_schedule") for module in run.model.modules())
    losses: list[tuple[Tensor, int]] = []  # of every part of a batch, and the samples of that batch
    samples = 0
    times: list[float] = []
    norms: list[Tensor] = []
    for batch in batches:
        began = time.perf_counter()
        rate = trial.step_size * rate_at(trial, run.step, total)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.optimizer.zero_grad(set_to_none=True)
        size = len(batch[0])
        losses += ((loss, size) for loss in algorithm.gradients(run.model, batch, run.step / total))
        share.add_gradients(run.model.parameters())
        samples += size
        if clip:
            nn.utils.clip_grad_norm_(run.model.parameters(), clip)
        if len(times) % _GRADIENTS_EVERY == 0:
            norms.append(nn.utils.get_total_norm([p.grad for p in run.model.parameters() if p.grad is not None]))
        run.optimizer.step()
        run.step += 1
        if scheduled:
            step_schedules(run.model, run.step, total)
        if run.average is not None:
            run.average.update(run.model)
        times.append(time.perf_counter() - began)
        tell(run.step)
        if run.step == total:
            break
    run.seconds += sum(times)
    steady = sorted(times[_WARM_UP:] or times)
    measured = torch.stack(norms).float() if norms else torch.full((1,), math.nan)
    return {
        "train loss": float(share.sum(_weighted(losses))) / max(samples, 1),
        "gradient norm": float(measured.mean()),
        "largest gradient norm": float(measured.max()),
        "seconds per step": steady[len(steady) // 2],
    }


def _weighted(losses: list[tuple[Tensor, int]]) -> Tensor:
    """Their sum, each times its samples."""
    weights = torch.tensor([size for _, size in losses], dtype=torch.float64, device=losses[0][0].device)
    return torch.stack([loss for loss, _ in losses]).double() @ weights


@torch.no_grad()
def evaluate(
    model: nn.Module,
    trial: Trial,
    test: Test,
    task: Task,
    share: Share = ALONE,
) -> tuple[float, float]:
    """Mean loss and score over all batches, in evaluation."""
    model.eval()
    device = next(model.parameters()).device
    losses, right, counted, samples = (torch.zeros((), device=device) for _ in range(4))
    for whole_x, whole_y in test.batches.epoch(0):
        x, y = share.part(whole_x), share.part(whole_y)
        with precision(trial, device):
            output = test.forward(model, x)
        if len(x):
            losses += task.loss(output, y) * len(x)
            good, count = task.score(output, y)
            right, counted, samples = right + good, counted + count, samples + len(x)
    loss, score, scored, seen = share.sum(torch.stack([losses, right, counted, samples])).tolist()
    return loss / max(seen, 1), score / max(scored, 1)

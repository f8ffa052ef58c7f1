"""`examine`: look at a model over data, and say what is wrong with its normalization."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from normsmith.doctor.checks import OF_DATA, OF_LOSS, OF_STATE, SPOIL
from normsmith.doctor.checks._gap import gap
from normsmith.doctor.checks.small_batch import noise
from normsmith.doctor.examination import Examination
from normsmith.doctor.finding import Finding
from normsmith.doctor.full.look import Keep, check_budget, look_closer
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.observe import observe
from normsmith.doctor.subject import BatchLoss, Subject
from normsmith.surgery._models import Forward


def examine(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    depth: Literal["default", "full"] = "default",
    loss: BatchLoss | None = None,
    budget: float | None = None,
) -> Examination:
    """Run `model` over `loader` in evaluation, and return what its normalizers suffer from, with evidence and cures.

    ```
    exam = ns.examine(model, loader)
    print(exam)
    exam.save("exam.json")
    ```

    A batch is a tensor, a mapping of arguments, or a sequence whose first item is the input; or it goes to `forward(model, batch)`.
    Give held-out data in batches of the size of training. `optimizer` is looked at for weight decay on normalizers. Modes, parameters,
    buffers and random state are put back. If the model or the loader raises, what was seen until then is examined, and `missing` says so.

    `depth="full"` looks closer, on the first eight batches: the share of every layer in the loss that evaluation adds, gradients across
    layers, Fisher blocks, smoothness, covariate shift. It says how long that takes, and stops after `budget` seconds of it. Its loss is
    `loss(output, batch)`, one number; or that in the output; or the cross entropy with the whole numbers that follow the input of a batch.
    """
    check_budget(depth, budget)
    kept = Keep()
    keep = kept.add if depth == "full" else None
    seen = observe(model, loader, batches=batches, forward=forward, optimizer=optimizer, keep=keep)
    subject = Subject(seen.model, loader, batches, forward, loss, optimizer)
    findings = _findings(seen, subject, kept.batches if depth == "full" else None, budget)
    unread = [f"{name or 'the model'}: {reason}" for name, reason in seen.unread.items()]
    unread += [f"{layer.name}: no batch reached it" for layer in seen.layers if layer.moments is None]
    return Examination(
        type(model).__name__,
        tuple(findings),
        tuple(_record(layer, seen) for layer in seen.layers),
        (*seen.missing, *unread),
        seen.batches,
        seen.samples,
        seen.closer.whole() if seen.closer else {},
        subject,
    )


def _findings(seen: Observation, subject: Subject, kept: list[Any] | None, budget: float | None) -> list[Finding]:
    """What the checks find, the worst first; behind statistics that are none, only of state. `kept`: what to look closer at."""
    findings = [finding for check in OF_STATE for finding in check(seen)]
    if SPOIL & {finding.code for finding in findings}:
        seen.missing.append(
            "what layers read: behind statistics of no data it means nothing; take the cure, then examine again"
        )
    else:
        if kept is not None:
            seen.closer = look_closer(seen, subject, kept, budget)
        findings += [finding for check in (*OF_DATA, *OF_LOSS) for finding in check(seen)]
    return sorted(findings, key=lambda finding: (-finding.weight, finding.code))


def _record(layer: Layer, seen: Observation) -> dict[str, Any]:
    """The numbers of one layer, None where there are none."""
    tracked, moved = layer.tracked and layer.moments is not None, seen.batches > 1 and layer.moments is not None
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "method": layer.source.method,
        "channels": layer.source.num_features if isinstance(layer.source.num_features, int) else None,
        "calls": layer.calls,
        "positions": layer.positions,
        "largest input": layer.largest,
        "excess kurtosis": float(layer.profile.moments.kurtosis.median())
        if layer.profile
        else None,  # of the channel in the middle
        "gap": gap(layer).size if tracked else None,
        "noise": noise(layer) if moved else None,
        **(seen.closer.record(layer.name) if seen.closer else {}),
    }

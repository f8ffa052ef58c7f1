"""`examine`: look at a model over data, and say what is wrong with its normalization."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from normsmith.doctor.channel_pictures import images_of
from normsmith.doctor.checks import OF_DATA, OF_LOSS, OF_STATE, SPOIL
from normsmith.doctor.examination import Examination
from normsmith.doctor.finding import Finding
from normsmith.doctor.full.look import Keep, check_budget, look_closer
from normsmith.doctor.layer_page import view_of
from normsmith.doctor.observation import Observation
from normsmith.doctor.observe import observe
from normsmith.doctor.record import details, record
from normsmith.doctor.subject import BatchLoss, Subject
from normsmith.surgery._models import Forward


def examine(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    process_group: dist.ProcessGroup | None = None,
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
    Give held-out data in batches of the size of training. `optimizer` is looked at for weight decay on normalizers, and for how many steps
    it took. Modes, parameters, buffers and random state are put back. If the model or the loader raises, what was seen until then is
    examined, and `missing` says so. What DistributedDataParallel, DataParallel or torch.compile is around is examined, without them.

    Under torch.distributed every rank of `process_group` (of the default one unless given) calls this with a loader of its own, and gets
    the examination of all data. Samples are then numbered as by a DistributedSampler that does not shuffle: the ranks take turns.

    `depth="full"` looks closer, on the first eight batches: the share of every layer in the loss that evaluation adds, gradients across
    layers, Fisher blocks, smoothness, covariate shift. It says how long that takes, and stops after `budget` seconds of it. Its loss is
    `loss(output, batch)`, one number; or that in the output; or the cross entropy with the whole numbers that follow the input of a batch.
    """
    check_budget(depth, budget)
    kept = Keep() if depth == "full" else None
    keep = kept.add if kept else None
    seen = observe(model, loader, batches=batches, forward=forward, optimizer=optimizer, process_group=process_group, keep=keep)
    subject = Subject(seen.model, loader, batches, forward, loss, optimizer)
    findings = _findings(seen, subject, kept.batches if kept else None, budget)
    return _examination(seen, subject, findings)


def _examination(seen: Observation, subject: Subject, findings: list[Finding]) -> Examination:
    """All that came of it."""
    unread = [f"{name or 'the model'}: {reason}" for name, reason in seen.unread.items()]
    unread += [f"{layer.name}: no batch reached it" for layer in seen.layers if not layer.reached]
    return Examination(
        type(seen.model).__name__,
        tuple(findings),
        tuple(record(layer, seen) for layer in seen.layers),
        (*seen.missing, *unread),
        seen.batches,
        seen.samples,
        tuple(details(layer) for layer in seen.layers),
        seen.closer.whole() if seen.closer else {},
        subject,
        tuple(view_of(layer) for layer in seen.layers),
        images_of(seen.first) if subject.forward is None else None,
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

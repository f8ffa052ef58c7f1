"""`examine`: look at a model over data, and say what is wrong with its normalization."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from normsmith.doctor.channel_pictures import subject_of
from normsmith.doctor.checks import OF_DATA, OF_STATE, SPOIL
from normsmith.doctor.examination import Examination
from normsmith.doctor.layer_page import view_of
from normsmith.doctor.observe import observe
from normsmith.doctor.record import details, record
from normsmith.surgery._models import Forward


def examine(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    process_group: dist.ProcessGroup | None = None,
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
    """
    seen = observe(model, loader, batches=batches, forward=forward, optimizer=optimizer, process_group=process_group)
    findings = [finding for check in OF_STATE for finding in check(seen)]
    if SPOIL & {finding.code for finding in findings}:
        seen.missing.append(
            "what layers read: behind statistics of no data it means nothing; take the cure, then examine again"
        )
    else:
        findings += [finding for check in OF_DATA for finding in check(seen)]
    findings.sort(key=lambda finding: (-finding.weight, finding.code))
    unread = [f"{name or 'the model'}: {reason}" for name, reason in seen.unread.items()]
    unread += [f"{layer.name}: no batch reached it" for layer in seen.layers if layer.moments is None]
    return Examination(
        type(seen.model).__name__,
        tuple(findings),
        tuple(record(layer, seen) for layer in seen.layers),
        (*seen.missing, *unread),
        seen.batches,
        seen.samples,
        tuple(details(layer) for layer in seen.layers),
        tuple(view_of(layer) for layer in seen.layers),
        subject_of(seen.model, seen.first) if forward is None else None,
    )

"""`examine`: look at a model over data, and say what is wrong with its normalization."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from normsmith.doctor.channel_pictures import subject_of
from normsmith.doctor.checks import OF_DATA, OF_STATE, SPOIL
from normsmith.doctor.checks._gap import gap
from normsmith.doctor.checks.small_batch import noise
from normsmith.doctor.examination import Examination
from normsmith.doctor.layer_page import view_of
from normsmith.doctor.observation import Layer, Observation
from normsmith.doctor.observe import observe
from normsmith.surgery._models import Forward


def examine(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    batches: int | None = None,
    forward: Forward | None = None,
    optimizer: torch.optim.Optimizer | None = None,
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
    """
    seen = observe(model, loader, batches=batches, forward=forward, optimizer=optimizer)
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
        type(model).__name__,
        tuple(findings),
        tuple(_record(layer, seen) for layer in seen.layers),
        (*seen.missing, *unread),
        seen.batches,
        seen.samples,
        tuple(view_of(layer) for layer in seen.layers),
        subject_of(seen.model, seen.first) if forward is None else None,
    )


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
    }

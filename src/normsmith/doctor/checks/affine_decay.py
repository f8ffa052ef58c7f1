"""NS205: weight decay on weights and biases of normalizers. For information, where an optimizer was given."""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    if seen.optimizer is None:
        return
    decay = {p: float(group.get("weight_decay") or 0.0) for group in seen.optimizer.param_groups for p in group["params"]}
    found = {}
    for layer in seen.layers:
        most = max((decay.get(p, 0.0) for p in layer.module.parameters()), default=0.0)
        if most > 0:
            found[layer.name] = {"weight decay": most}
    if found:
        yield Finding(
            "NS205",
            "weight decay on normalizers",
            "info",
            tuple(found),
            found,
            "The optimizer draws weights of normalizers to zero. It is a habit of long standing to leave them out; before a layer with "
            "weights of its own it changes the effective learning rate more than the function.",
            "torch.optim.AdamW(ns.param_groups(model, weight_decay))",
            ("pytorch#1402",),
        )

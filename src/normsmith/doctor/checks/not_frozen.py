"""NS207: layers that look frozen, and are not.

A warning where weight and bias get no gradient, other parameters of the model do, and the running statistics would move in training.
"""

from collections.abc import Iterator

from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers."""
    if not any(p.requires_grad for p in seen.model.parameters()):
        return
    found = {}
    for layer in seen.tracked():
        own = list(layer.module.parameters())
        if layer.by_batch and own and not any(p.requires_grad for p in own):
            found[layer.name] = {"momentum": str(getattr(layer.module, "momentum", None))}
    if found:
        yield Finding(
            "NS207",
            "frozen layers whose statistics move",
            "warning",
            tuple(found),
            found,
            "Weight and bias of these layers are kept from training, as in fine-tuning, but the running statistics are no "
            "parameters: every forward after model.train() moves them, and normalizes by the batch. "
            "eval() on a layer is undone by the next model.train().",
            "ns.freeze(model, where=lambda layer, name: name in names)",
            ("pytorch#66073", "pytorch#10856"),
        )

"""NS104: channels whose variance eps dominates.

Where var < 10 eps the output is smaller than the layer means to make it, and depends on eps. A warning where that is so for 5 % of the
channels that live (in the case that users reported, 21 % were), else for information.
"""

from collections.abc import Iterator

from normsmith.doctor.checks.dead_channels import is_dead
from normsmith.doctor.checks.never_updated import is_new
from normsmith.doctor.finding import Finding
from normsmith.doctor.observation import Observation

TIMES, SHARE = 10.0, 0.05


def check(seen: Observation) -> Iterator[Finding]:
    """One finding for all such layers, as severe as the worst."""
    found = {}
    for layer in seen.tracked():
        if is_new(layer) or layer.eps == 0:
            continue
        var = layer.running()[1].cpu()
        small = var < TIMES * layer.eps
        if small.numel() == is_dead(layer).numel():
            small &= ~is_dead(layer)
        if bool(small.any()):
            found[layer.name] = {
                "share of channels": float(small.double().mean()),
                "smallest variance": float(var[small].min()),
                "eps": layer.eps,
            }
    if found:
        worst = max(numbers["share of channels"] for numbers in found.values())
        yield Finding(
            "NS104",
            "eps dominates the variance",
            "warning" if worst >= SHARE else "info",
            tuple(found),
            found,
            "In some channels the variance is not much larger than eps, so that these channels come out too small, and a model that is "
            "rebuilt with another eps is another model. eps is no part of a state dict: check that it is what the model was trained with.",
            'ns.convert(model, {name: "batch:eps=1e-8"})  # with the eps of training',
            ("libreyolo#700",),
        )

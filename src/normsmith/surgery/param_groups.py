"""`param_groups`: the parameters of a model for its optimizer, with weight decay only where it means something."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from normsmith.errors import ModelError, OptionError
from normsmith.methods._kinds import DECAYED, KINDS
from normsmith.surgery._parameters import places_of

# A parameter that several modules share takes the first of its kinds in this order: what a normalizer or a bias needs comes first.
_ORDER = (*KINDS, "biases", "embeddings", "weights")


def param_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_embeddings: bool = True,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    names: bool = False,
) -> list[dict[str, Any]]:
    """All parameters of `model` in groups for an optimizer, each once, by what their modules are; `weight_decay` is 0 where it harms.

    ```
    groups = ns.param_groups(model, 1e-4, overrides={"logits": {"lr": 1e-3}})
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    ```

    Every group has a `"name"`. Decayed are `"weights"`, the rest; `"embeddings"`, unless `decay_embeddings=False`; and `"maps"`, matrices
    from a condition to weight and bias of a normalizer. Not decayed are `"biases"`, and of normalizers `"affine"`, `"logits"` (and other
    shares of statistics), `"thresholds"`, `"slopes"`, `"floors"` and `"transitions"` of Kalman chains: neutral is the identity there, not
    zero. Normalizers are ours, torch's, and any module called a norm with parameters of one dimension.

    `overrides` gives options by name, weight_decay too; names that the model has nothing of are passed over, so that one recipe serves
    several models. `names=True` adds `"param_names"`, which torch's optimizers save; then groups added later need names too.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"param_groups expects a torch.nn.Module: got {type(model).__name__}; pass the model itself")
    if not weight_decay >= 0:
        raise OptionError(f"param_groups expects weight_decay of 0 or more: got {weight_decay!r}; try 1e-4")
    overrides = _checked(overrides or {})
    found: dict[nn.Parameter, tuple[str, str]] = {}
    for place in places_of(model):
        first, known = found.get(place.parameter, (place.name, place.kind))
        found[place.parameter] = first, min(known, place.kind, key=_ORDER.index)
    if not found:
        raise ModelError(f"param_groups expects a model with parameters: got {type(model).__name__} without any")
    decayed = {"weights", *DECAYED, *(("embeddings",) if decay_embeddings else ())}
    groups = []
    for kind in reversed(_ORDER):
        members = {parameter: name for parameter, (name, known) in found.items() if known == kind}
        if members:
            group = {"name": kind, "params": list(members), "weight_decay": weight_decay if kind in decayed else 0.0}
            groups.append({**group, **({"param_names": list(members.values())} if names else {}), **overrides.get(kind, {})})
    return groups


def _checked(overrides: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    for kind, options in overrides.items():
        if kind not in _ORDER:
            raise OptionError(f"param_groups expects overrides for {', '.join(reversed(_ORDER))}: got {kind!r}")
        own = {"name", "params", "param_names"} & options.keys()
        if own:
            raise OptionError(
                f"param_groups expects overrides of optimizer options, such as lr: got {own.pop()!r} for {kind!r}; leave it out"
            )
    return overrides

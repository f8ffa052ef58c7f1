"""What the parameters of the methods are for, as data: every class names the kind of each of its own in `parameter_kinds`."""

from torch import nn

KINDS = {
    "affine": "weight and bias of the output; without the weight it is a constant",
    "maps": "matrices from a condition to weight and bias; without them all conditions are alike",
    "contexts": "mean and log of the deviation of each context; zero would be no normalization",
    "logits": "the shares in which statistics are mixed; zero would be equal parts, or one of the two alone",
    "components": "means and variances, before a softplus, of the components of a mixture; zero would put all in one place",
    "gates": "matrices from statistics to the shares of components; zero would make all components alike, for good",
    "thresholds": "below which the output is cut off",
    "slopes": "of an activation that the method includes; zero would make it linear, or a constant",
    "floors": "what is added to a variance, itself or before a softplus, where zero would be 0.69",
    "transitions": "matrices that predict statistics from those of the layer before; neutral is the identity, zero would predict none",
}
DECAYED = frozenset({"maps"})  # weight decay draws to zero, which is the neutral value of these alone


def kind_of(module: nn.Module, name: str) -> str | None:
    """The kind of a module's own parameter; None where no class of it says."""
    for cls in type(module).__mro__:
        kinds: dict[str, str] = vars(cls).get("parameter_kinds", {})
        if name in kinds:
            return kinds[name]
    return None

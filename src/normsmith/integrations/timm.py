"""timm: the names of the catalog wherever timm takes the name of a norm layer."""

import importlib
from typing import Any

from torch import Tensor, nn

from normsmith.errors import DependencyError
from normsmith.methods.catalog import CATALOG, Entry


def register_with_timm() -> list[str]:
    """Make timm know our methods: `timm.create_model("resnet50", norm_layer="switchable")`. Returns the names.

    Where timm asks for norm and activation in one (`"efficientnet_b0"`, say), it gets our method followed by its activation, with the
    names in the state dict that timm's own have. The methods take channels in dimension 1: for convolutional networks, not for tokens.
    Methods that need a second input are left out. Names of timm stay what they are; `"groupnorm"` is timm's, `"group"` ours. Pass names:
    for a class timm looks at what it is called, and `ns.GroupNorm` is then timm's. For options pass
    `functools.partial(ns.GroupNorm, num_groups=8)` where only a norm is asked for.
    """
    norms, acts = _tables()
    found = {entry.name.replace("_", ""): entry for entry in CATALOG.values() if entry.family != "adaptive"}
    for key, entry in found.items():
        if norms._NORM_MAP.setdefault(key, entry.load()) is entry.load():
            norms._NORM_TYPES.add(entry.load())
        both = _with_activation(entry)
        if acts._NORM_ACT_MAP.setdefault(key, both) is both:
            acts._NORM_ACT_TYPES.add(both)
            acts._NORM_ACT_REQUIRES_ARG.add(both)
    return [entry.name for entry in found.values()]


def _tables() -> tuple[Any, Any]:
    """The modules of timm that look names up."""
    try:
        norms = importlib.import_module("timm.layers.create_norm")
        acts = importlib.import_module("timm.layers.create_norm_act")
    except ImportError as error:
        raise DependencyError(f"register_with_timm expects timm: got {error}; pip install timm torchvision") from None
    wanted = ((norms, "_NORM_MAP"), (norms, "_NORM_TYPES"), (acts, "_NORM_ACT_MAP"), (acts, "_NORM_ACT_TYPES"))
    absent = [name for module, name in (*wanted, (acts, "_NORM_ACT_REQUIRES_ARG")) if not hasattr(module, name)]
    if absent:
        raise DependencyError(f"register_with_timm expects timm 1.0: got one without {', '.join(absent)}; pip install -U timm")
    return norms, acts


class _Activated(nn.Module):
    """The second base of a method's class with timm's activation behind it, and its drop layer between."""

    def __init__(
        self,
        num_features: int,
        *,
        apply_act: bool = True,
        act_layer: Any = nn.ReLU,
        act_kwargs: dict[str, Any] | None = None,
        inplace: bool = True,
        drop_layer: Any = None,
        **options: Any,
    ) -> None:
        from timm.layers import create_act_layer

        super().__init__(num_features, **options)
        self.drop = nn.Identity() if drop_layer is None else drop_layer()
        act = create_act_layer(act_layer, **{"inplace": inplace, **(act_kwargs or {})}) if apply_act else None
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


def _with_activation(entry: Entry) -> type[Any]:
    """The method's class with an activation, the same one every time; a pickle finds it by its name in this module."""
    name = f"{entry.class_name}Act"
    if name not in globals():
        globals()[name] = type(name, (_Activated, entry.load()), {"__doc__": _Activated.__doc__})
    made: type[Any] = globals()[name]
    return made


def __getattr__(name: str) -> Any:
    for entry in CATALOG.values():
        if name == f"{entry.class_name}Act":
            return _with_activation(entry)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The same methods by other packages, on GPUs, where they are installed: Apex, Liger and timm."""

import importlib
from typing import Any

from torch import nn

# Method: package, where in it, what; and whether it normalizes the last dimension alone, so that (N, C) is all it can stand for.
_RIVALS = {
    "layer": (
        ("apex", "apex.normalization", "FusedLayerNorm", True),
        ("liger", "liger_kernel.transformers", "LigerLayerNorm", True),
    ),
    "rms": (("apex", "apex.normalization", "FusedRMSNorm", True), ("liger", "liger_kernel.transformers", "LigerRMSNorm", True)),
    "group": (("apex", "apex.contrib.group_norm", "GroupNorm", False),),
    "filter_response": (("timm", "timm.layers", "FilterResponseNormTlu2d", False),),
    "evo_s0": (("timm", "timm.layers", "EvoNorm2dS0", False),),
    "evo_b0": (("timm", "timm.layers", "EvoNorm2dB0", False),),
}


def rivals(method: str, shape: tuple[int, ...], ours: Any) -> dict[str, nn.Module]:
    """Layers of other packages that do the same to data of this shape, by package."""
    found: dict[str, nn.Module] = {}
    for package, room, name, trailing in _RIVALS.get(method, ()):
        if len(shape) != (2 if trailing else 4):
            continue
        try:
            kind = getattr(importlib.import_module(room), name)
        except (ImportError, AttributeError):  # not there, or of a version without it
            continue
        found[package] = kind(ours.num_groups, shape[1]) if method == "group" else kind(shape[1])
    return found

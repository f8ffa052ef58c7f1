"""The catalog of networks: each by name, with what is known of it before it is imported. This file does not import torch.

To add one: a class in a file of this room, or options of one that is there, and a line here. Tests, the page and `compare` follow.
"""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from normsmith.errors import OptionError

Task = Literal["classification", "segmentation", "localisation", "clips", "sequence"]
FRAMES = 8


@dataclass(frozen=True)
class Entry:
    """One network: its name, its class with the options that make it this one, where it is from."""

    name: str
    class_name: str
    room: str  # the file with the class
    summary: str
    paper: str
    options: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "classification"

    @property
    def rank(self) -> int:
        """Dimensions of the input: 4 for images (N, C, H, W), 5 for clips (N, C, T, H, W), 3 for sequences (N, T, C)."""
        return {"clips": 5, "sequence": 3}.get(self.task, 4)

    def input_shape(self, samples: int, *, in_channels: int = 3, image_size: int = 32) -> tuple[int, ...]:
        """The shape of a batch: a clip has 8 frames, a sequence as many steps as an image has rows, of `in_channels` numbers."""
        if self.task == "sequence":
            return samples, image_size, in_channels
        frames = (FRAMES,) if self.task == "clips" else ()
        return samples, in_channels, *frames, image_size, image_size

    def load(self) -> type[Any]:
        """The class; imports its file."""
        cls: type[Any] = getattr(importlib.import_module(f"normsmith.models.{self.room}"), self.class_name)
        return cls


_ENTRIES = (
    Entry(
        "shallow_cnn",
        "ShallowCNN",
        "shallow_cnn",
        "four convolutions of 5×5 and 3×3, three max pools",
        "Faye, Azzag, Lebbah and Bouchaffra, 2024; Kalayeh and Shah, 2019",
    ),
    Entry("mlp", "MLP", "mlp", "three hidden layers of 100 with sigmoids", "Ioffe and Szegedy, 2015"),
    Entry(
        "mlp_relu",
        "MLP",
        "mlp",
        "three hidden layers of 100 with ReLU",
        "after Ioffe and Szegedy, 2015",
        {"activation": "relu"},
    ),
    Entry(
        "deep_linear",
        "MLP",
        "mlp",
        "25 linear layers, nothing between them but norms",
        "Santurkar, Tsipras, Ilyas and Madry, 2018",
        {"activation": "none", "depth": 25},
    ),
    Entry(
        "resnet20",
        "ResNet",
        "resnet",
        "residual network for 32×32",
        "He, Zhang, Ren and Sun, 2016",
        {"depths": (3, 3, 3), "width": 16, "shortcut": "pad"},
    ),
)
CATALOG = {entry.name: entry for entry in _ENTRIES}


def catalog() -> dict[str, Entry]:
    """Every network by name."""
    return dict(CATALOG)


def find(name: str) -> Entry:
    """The entry of that name, or an error that suggests the nearest."""
    if name in CATALOG:
        return CATALOG[name]
    near = difflib.get_close_matches(name.lower().strip().replace("-", "_"), CATALOG, n=2, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"they are {', '.join(CATALOG)}"
    raise OptionError(f"the catalog of networks expects a name of its own: got {name!r}; {advice}")

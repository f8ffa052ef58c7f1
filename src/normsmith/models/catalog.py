"""The catalog of networks: each by name, with what is known of it before it is imported. This file does not import torch.

To add one: a class in a file of this room, or options of one that is there, and a line here. Tests, the page and `compare` follow.
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from normsmith.errors import OptionError
from normsmith.methods._specs import among, written

Task = Literal["classification", "segmentation", "localisation", "clips", "sequence"]
FRAMES = 8
OF_THE_DATA = ("num_classes", "in_channels", "image_size", "norm")  # arguments of `make`, which fit a network to data


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
    imagenet: bool = False  # whether the paper has it for ImageNet

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


_HE = "He, Zhang, Ren and Sun, 2016"
_XIE = "Xie, Girshick, Dollár, Tu and He, 2017"
_HU = "Hu, Shen and Sun, 2018"
_HUANG = "Huang, Liu, van der Maaten and Weinberger, 2017"
_PAN = "Pan, Luo, Shi and Tang, 2018"
_VGG = "Simonyan and Zisserman, 2015"
_DEEP: dict[str, Any] = {"imagenet": True, "width": 64, "bottleneck": True, "depths": (3, 4, 6, 3)}
_SMALL: dict[str, Any] = {"width": 16, "depths": (3, 3, 3), "shortcut": "pad"}


def _perceptron(name: str, summary: str, paper: str, **options: Any) -> Entry:
    return Entry(name, "MLP", "mlp", summary, paper, options)


def _residual(name: str, summary: str, paper: str, imagenet: bool = False, **options: Any) -> Entry:
    return Entry(name, "ResNet", "resnet", summary, paper, options, imagenet=imagenet)


_ENTRIES = (
    Entry(
        "shallow_cnn",
        "ShallowCNN",
        "shallow_cnn",
        "four convolutions of 5×5 and 3×3, three max pools",
        "Faye et al., 2024; Kalayeh and Shah, 2019",
    ),
    _perceptron("mlp", "three hidden layers of 100 with sigmoids", "Ioffe and Szegedy, 2015"),
    _perceptron("mlp_relu", "three hidden layers of 100 with ReLU", "Ioffe and Szegedy, 2015", activation="relu"),
    _perceptron(
        "deep_linear", "25 layers with nothing but norms between", "Santurkar et al., 2018", activation="none", depth=25
    ),
    Entry("alexnet", "AlexNet", "vgg", "five convolutions, one tower", "Krizhevsky, 2014", imagenet=True),
    Entry("vgg_a", "VGG", "vgg", "configuration A: 8 convolutions", _VGG, imagenet=True),
    Entry("vgg16", "VGG", "vgg", "configuration D: 13 convolutions", _VGG, {"depths": (2, 2, 3, 3, 3)}, imagenet=True),
    _residual("resnet20", "basic blocks for 32×32, shortcuts without parameters", _HE, **_SMALL),
    _residual("resnet18", "basic blocks", _HE, imagenet=True, width=64, depths=(2, 2, 2, 2)),
    _residual("resnet50", "bottleneck blocks", _HE, **_DEEP),
    _residual("preresnet20", "resnet20 with norm and ReLU first", f"{_HE} (b)", **_SMALL, norm_first=True),
    _residual("preresnet50", "resnet50 with norm and ReLU first", f"{_HE} (b)", **_DEEP, norm_first=True),
    _residual("wide_resnet_28_2", "28 layers, twice as wide, norm first", "Zagoruyko and Komodakis, 2016",
              depths=(4, 4, 4), width=16, widen=2, norm_first=True),
    _residual("ibn_resnet20_a", "resnet20 with half instance norm in the first blocks", _PAN, **_SMALL, ibn="a"),
    _residual("ibn_resnet20_b", "resnet20 with instance norm behind two stages", _PAN, **_SMALL, ibn="b"),
    _residual("ibn_resnet50_a", "resnet50 with half instance norm in the first blocks", _PAN, **_DEEP, ibn="a"),
    _residual("ibn_resnet50_b", "resnet50 with instance norm behind two stages", _PAN, **_DEEP, ibn="b"),
    _residual("resnext29_small", "bottlenecks with 4 groups of 4, for 32×32", _XIE,
              depths=(3, 3, 3), width=16, bottleneck=True, groups=4, group_width=16),
    _residual("resnext29", "bottlenecks with 8 groups of 64, for 32×32", _XIE,
              depths=(3, 3, 3), width=64, bottleneck=True, groups=8),
    _residual("resnext50", "bottlenecks with 32 groups of 4", _XIE, **_DEEP, groups=32, group_width=4),
    _residual("se_resnet20", "resnet20 with squeeze and excitation", _HU, **_SMALL, squeeze=16),
    _residual("se_resnet50", "resnet50 with squeeze and excitation", _HU, **_DEEP, squeeze=16),
    Entry("densenet40", "DenseNet", "densenet", "36 layers of growth 12, for 32×32", _HUANG),
    Entry("densenet_bc_100", "DenseNet", "densenet", "48 layers of growth 12 with bottleneck, for 32×32", _HUANG,
          {"depths": (16, 16, 16), "bottleneck": True}),
    Entry("densenet121", "DenseNet", "densenet", "58 layers of growth 32 with bottleneck", _HUANG,
          {"depths": (6, 12, 24, 16), "growth": 32, "bottleneck": True}, imagenet=True),
    Entry("vit", "ViT", "vit", "4 encoders of width 64 on a grid of 8×8 patches", "Dosovitskiy et al., 2021"),
    Entry("unet", "UNet", "unet", "3 levels, 16 channels at the top", "Ronneberger, Fischer and Brox, 2015",
          task="segmentation"),
    Entry("detector", "Detector", "detector", "4 + 2 convolutions, class and box", "after Redmon et al., 2016",
          task="localisation"),
    Entry("clipnet", "ClipNet", "clips", "four 3×3×3 convolutions", "after Tran et al., 2015", task="clips"),
    Entry("lstm", "LSTMClassifier", "lstm", "one layer of 100, a norm for each product",
          "Hochreiter and Schmidhuber, 1997; Cooijmans et al., 2017", task="sequence"),
    Entry("lstm_rows", "LSTMClassifier", "lstm", "the same, for images read row by row", "Cooijmans et al., 2017",
          {"rows": True}),
)  # fmt: skip
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


def parse(model: str) -> tuple[Entry, dict[str, Any]]:
    """The entry and the options of what `make` takes: "resnet20:norm_first=true,width=8"."""
    name, options = written(model)
    entry = find(name)
    if options:
        known = [key for key in inspect.signature(entry.load()).parameters if key not in OF_THE_DATA]
        among(options, known, name)
    return entry, options


def check_name(model: str) -> None:
    """Raise for a name or an option that is not known."""
    parse(model)

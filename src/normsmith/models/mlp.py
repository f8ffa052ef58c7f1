"""Networks of linear layers alone: the perceptron of the paper on batch norm, and a deep linear net."""

from typing import Literal

from torch import Tensor, nn

from normsmith.methods._base import one_of
from normsmith.models._blocks import Norm, activation_after, expect_sizes, initialise, lacks_bias, normalizer

_ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "none": nn.Identity}


class MLP(nn.Module):
    """`depth` hidden layers of `width`, each linear, norm, activation, and a linear layer to the classes; images are made flat.

    By default that of Ioffe and Szegedy (2015) for MNIST: three layers of 100 with sigmoids. `activation="none"` is the deep linear net of
    Santurkar et al. (2018). Weights begin as Glorot and Bengio's (2010), with ReLU as He et al.'s (2015).
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Norm = "batch",
        width: int = 100,
        depth: int = 3,
        activation: Literal["sigmoid", "relu", "none"] = "sigmoid",
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        expect_sizes("MLP", **sizes, width=width, depth=depth)
        one_of("MLP", "activation", activation, tuple(_ACTIVATIONS))
        self.backbone = nn.Sequential(nn.Flatten())
        before = in_channels * image_size**2
        for _ in range(depth):
            layer = normalizer(norm, width)
            linear = nn.Linear(before, width, bias=lacks_bias(layer))
            self.backbone.append(nn.Sequential(linear, layer, activation_after(layer, _ACTIVATIONS[activation])))
            before = width
        self.head = nn.Linear(before, num_classes)
        initialise(self, "he" if activation == "relu" else "xavier")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of inputs whose dimensions but the first make in_channels * image_size² numbers."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

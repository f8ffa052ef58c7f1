"""What the networks are made of: the norm a name stands for, a convolution with its norm and activation, and how weights begin."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normsmith.errors import OptionError
from normsmith.methods._base import Normalizer
from normsmith.methods.catalog import make
from normsmith.surgery.adapted import Adapted

Norm = str | type[Any] | Callable[..., Any] | None
LARGE = 128  # from this image size on, networks take the form they have for ImageNet
_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def normalizer(norm: Norm, num_features: int) -> nn.Module:
    """What `norm` makes for so many channels in dimension 1; nothing for None."""
    if norm is None:
        return nn.Identity()
    layer: nn.Module = make(norm, num_features)
    if isinstance(layer, Normalizer):
        others = layer.example_inputs(torch.empty(1, num_features, 2, device="cpu"))
        if set(others) - {layer.condition_name}:  # conditions come from outside: `conditioned`
            raise OptionError(
                f"a network expects a normalizer of its input alone: got {norm!r}, which also takes {' and '.join(others)}; "
                "put it in a network that has that to give"
            )
    return layer


def token_normalizer(norm: Norm, num_features: int) -> nn.Module:
    """The same for channels in the last dimension, (N, T, C): by the trailing dimension where the method can, as layer norm does."""
    layer = normalizer(norm, num_features)
    if isinstance(layer, Normalizer) and layer.takes_shape and norm is not None:
        trailing: nn.Module = make(norm, (num_features,))  # type: ignore[arg-type]
        return trailing
    if isinstance(layer, nn.Identity | nn.LayerNorm | nn.RMSNorm | Adapted):
        return layer
    return Adapted(layer, channels_last=True)


def activation_after(norm: nn.Module, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """The activation, or nothing behind a norm that includes one."""
    return nn.Identity() if getattr(norm, "activates", False) else activation()


def lacks_bias(norm: nn.Module) -> bool:
    """Whether what is before this norm should have a bias of its own."""
    return getattr(norm, "bias", None) is None


def convolution(
    before: int,
    after: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = True,
    dims: int = 2,
) -> nn.Module:
    """A convolution; without `padding` it keeps the size of its input, or divides it by its stride."""
    padding = kernel // 2 if padding is None else padding
    return _CONVOLUTIONS[dims](before, after, kernel, stride, padding, groups=groups, bias=bias)


def unit(
    before: int,
    after: int,
    kernel: int,
    *,
    norm: Norm,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    bias: bool | None = None,
    dims: int = 2,
) -> nn.Sequential:
    """Convolution, norm and activation; unless `bias` says otherwise, the convolution has one where the norm has none."""
    layer = normalizer(norm, after)
    bias = lacks_bias(layer) if bias is None else bias
    conv = convolution(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=bias, dims=dims)
    parts = OrderedDict([("conv", conv), ("norm", layer)])
    if activation is not None:
        parts["act"] = activation_after(layer, activation)
    return nn.Sequential(parts)


def norm_act(channels: int, norm: Norm) -> nn.Sequential:
    """Norm and ReLU, to stand before a convolution."""
    layer = normalizer(norm, channels)
    return nn.Sequential(OrderedDict([("norm", layer), ("act", activation_after(layer))]))


class GlobalPool(nn.Module):
    """The mean over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def initialise(model: nn.Module, linear: Literal["torch", "he", "xavier"] = "torch") -> None:
    """Weights of convolutions as He et al. (2015), with the variance 2 over the fan out, and biases zero; linear layers as asked."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear == "he":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear) and linear == "xavier":
            nn.init.xavier_normal_(module.weight)
        else:
            continue
        if module.bias is not None and not (isinstance(module, nn.Linear) and linear == "torch"):
            nn.init.zeros_(module.bias)


def expect_sizes(name: str, **sizes: int) -> None:
    """Raise unless all are positive integers."""
    for key, value in sizes.items():
        if type(value) is not int or value < 1:
            raise OptionError(f"{name} expects {key} as a positive integer: got {value!r}")


def expect_depths(name: str, depths: object) -> None:
    """Raise unless it is a sequence of numbers of blocks."""
    if not isinstance(depths, tuple | list) or not depths:
        raise OptionError(f"{name} expects depths, one number for each stage, as a tuple: got {depths!r}; try (2, 2, 2)")
    expect_sizes(name, **{f"depths[{i}]": depth for i, depth in enumerate(depths)})


def expect_flags(name: str, **flags: bool) -> None:
    """Raise unless all are true or false, which a word in a recipe may fail to be."""
    for key, value in flags.items():
        if type(value) is not bool:
            raise OptionError(f"{name} expects {key} as true or false: got {value!r}")

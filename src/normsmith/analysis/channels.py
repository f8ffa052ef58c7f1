"""What a channel looks at, and what it looks for: two pictures of one channel of one layer.

`saliency`: the gradient of the channel's mean activation with respect to the input (Simonyan, Vedaldi and Zisserman, "Deep Inside
Convolutional Networks", 2014). `activation_maximum`: an input that drives it high, by gradient ascent from noise (Erhan and others 2009),
with the regularisers of Yosinski and others 2015 and Mordvintsev, Olah and Tyka 2015, without which such inputs are high frequencies: the
input is shifted at random before each step, what varies between neighbours is charged for, and it is blurred, less and less.
"""

import difflib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.analysis._still import Still, holding
from normsmith.errors import InputError, ModelError, OptionError
from normsmith.surgery._models import tensors
from normsmith.surgery._recognise import recognise
from normsmith.surgery._source import NotUnderstoodError

Layer = str | nn.Module


@dataclass(frozen=True, eq=False)
class Maximum:
    """An input that drives a channel, and the mean activation before each step and after the last."""

    x: Tensor
    activations: Tensor


def saliency(model: nn.Module, x: Tensor, layer: Layer, channel: int) -> Tensor:
    """The gradient, of the shape of `x`, of the channel's mean activation at the output of `layer`, in evaluation.

    `layer` is a name or a module. The mean is over positions, and over calls if there are several; samples are on their own unless the
    model mixes them.
    """
    with holding(model, "saliency", evaluating=True) as still:
        activation = _Activation(still, layer, channel)
        start = _floating("saliency", x).detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(activation(start), start)
    return found


def activation_maximum(
    model: nn.Module,
    layer: Layer,
    channel: int,
    shape: tuple[int, ...],
    *,
    steps: int = 128,
    seed: int = 0,
    rate: float = 0.05,
    jitter: int = 2,
    variation: float = 0.01,
    blur: float = 1.0,
    bounds: tuple[float, float] = (-2.0, 2.0),
) -> Maximum:
    """An input of this shape, samples first, that drives a channel of a layer high, in evaluation; from noise, the same for the same seed.

    Each of the `steps` is `rate` times the width of the bounds long, root mean square over a sample. On spatial dimensions, those from the
    third: `jitter` is by how many positions the input is shifted at most, `variation` what an absolute difference between neighbours costs,
    `blur` the width of a Gaussian at the start, which falls to 0. With 0 each is off. `bounds` are those of the input's values.
    """
    low, high = bounds
    numbers = {"steps": steps, "rate": rate, "jitter": jitter, "variation": variation, "blur": blur}
    for name, value in numbers.items():
        if value < 0:
            raise OptionError(f"activation_maximum expects {name} from 0: got {value!r}; 0 leaves it out")
    if not low < high:
        raise OptionError(f"activation_maximum expects bounds as (least, greatest): got {bounds!r}; give those of your inputs")
    generator = torch.Generator().manual_seed(seed)
    with holding(model, "activation_maximum", evaluating=True) as still:
        activation = _Activation(still, layer, channel)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        noise = torch.randn(shape, generator=generator) * (high - low) / 20 + (high + low) / 2
        x, axes = noise.to(like).clamp(low, high), list(range(2, len(shape)))
        curve: list[float] = []
        for step in range(steps):
            shifts = torch.randint(-jitter, jitter + 1, (len(axes),), generator=generator).tolist()
            x = (torch.roll(x, shifts, axes) if axes else x).requires_grad_()
            reached = activation(x)
            curve.append(float(reached.detach()))
            (slope,) = torch.autograd.grad(reached - variation * _variation(x, axes), x)
            size = slope.flatten(1).square().mean(1).sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
            x = x.detach() + rate * (high - low) * slope / size.view(-1, *[1] * (slope.dim() - 1))
            x = _blurred(x, blur * (1 - (step + 1) / steps), axes).clamp(low, high)
            x = torch.roll(x, [-shift for shift in shifts], axes) if axes else x
        with torch.no_grad():
            curve.append(float(activation(x)))
    return Maximum(x, torch.tensor(curve, dtype=torch.float64) / shape[0])


class _Activation:
    """The mean activation of a channel as a function of the input, summed over samples."""

    def __init__(self, still: Still, layer: Layer, channel: int) -> None:
        self.still, self.channel = still, channel
        self.name, self.module = _found(still, layer)
        try:
            source = recognise(self.module)
        except NotUnderstoodError:
            source = None
        self.last = isinstance(self.module, nn.Linear) or (source is not None and source.channels_last)

    def __call__(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []

        def look(_: nn.Module, __: tuple[object, ...], output: object) -> None:
            values.append(self._mean(next(iter(tensors(output)), None)))

        handle = self.module.register_forward_hook(look)
        try:
            self.still.call(lambda: self.still.model(x), {})
        finally:
            handle.remove()
        if not values:
            raise ModelError(
                f"{self.still.verb} expects a layer that the model runs: {self.name!r} was not reached; name another one"
            )
        return torch.stack(values).mean(0)

    def _mean(self, y: Tensor | None) -> Tensor:
        if y is None or y.dim() < 2:
            raise ModelError(
                f"{self.still.verb} expects a layer with an output of shape (N, C, ...): {self.name!r} has another"
            )
        y = y.movedim(-1, 1) if self.last else y
        if not -y.shape[1] <= self.channel < y.shape[1]:
            raise OptionError(
                f"{self.still.verb} expects a channel of {self.name!r}, from 0 to {y.shape[1] - 1}: got {self.channel!r}"
            )
        return y[:, self.channel].flatten(1).mean(1).sum() if y.dim() > 2 else y[:, self.channel].sum()


def _found(still: Still, layer: Layer) -> tuple[str, nn.Module]:
    modules = dict(still.model.named_modules())
    for name, module in modules.items():
        if layer is module or layer == name:
            return name, module
    if isinstance(layer, nn.Module):
        raise ModelError(f"{still.verb} expects a layer of the model: got a {type(layer).__name__} that is none; give its name")
    near = " or ".join(map(repr, difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)))
    raise ModelError(f"{still.verb} expects the name of a layer: got {layer!r}{f'; did you mean {near}?' if near else ''}")


def _floating(verb: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
        got = f"{x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{verb} expects a floating tensor as input: got {got}; pass what the model reads, such as images")
    return x


def _variation(x: Tensor, axes: list[int]) -> Tensor:
    """The mean absolute difference of neighbours along these axes, summed over samples."""
    parts = [x.diff(dim=axis).abs().flatten(1).mean(1).sum() for axis in axes if x.shape[axis] > 1]
    return torch.stack(parts).sum() if parts else x.new_zeros(())


def _blurred(x: Tensor, width: float, axes: list[int]) -> Tensor:
    """Convolved with a Gaussian along these axes, the outermost values going on outside."""
    reach = int(3 * width + 0.5)
    if reach < 1:
        return x
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    kernel = (-(steps**2) / (2 * width**2)).exp()
    for axis in axes:
        moved = x.movedim(axis, -1)
        lines = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (reach, reach), mode="replicate")
        x = F.conv1d(lines, (kernel / kernel.sum()).view(1, 1, -1)).view(moved.shape).movedim(-1, axis)
    return x

"""Style transfer with adaptive instance norm: a frozen encoder, its mirror as a decoder, and the losses (Huang and Belongie, 2017)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normsmith.errors import InputError, ModelError, OptionError
from normsmith.measure import measure
from normsmith.methods.adain import adain
from normsmith.models._blocks import Norm, expect_depths, expect_sizes, initialise, normalizer
from normsmith.models._colours import match_colours
from normsmith.writing import write_whole

FORMAT = "normsmith style transfer 1"


class StyleEncoder(nn.Module):
    """The stages of a VGG up to the first ReLU of the last one; its forward gives the first ReLU of every stage.

    `depths` are the convolutions of the stages before the last, which has one; channels begin with `width` and double from stage to stage.
    VGG-19 up to relu4_1 is depths=(2, 2, 4), width=64. Padding is by reflection, 2×2 max pools round up. Images are (N, 3, H, W) of
    0 to 1; `colours`, a 1×1 convolution that is not trained, brings them to the scale that the weights are for. `norm` stands before each
    ReLU, for training as a classifier.
    """

    def __init__(self, depths: Sequence[int] = (2, 2, 2), *, width: int = 32, norm: Norm = None) -> None:
        super().__init__()
        expect_depths("StyleEncoder", depths)
        expect_sizes("StyleEncoder", width=width)
        self.depths, self.width = tuple(depths), width
        self.colours = nn.Conv2d(3, 3, 1)
        self.stages = nn.ModuleList()
        for sizes in _stages(depths, width):
            self.stages.append(nn.Sequential(*(_unit(before, after, norm) for before, after in sizes)))
        initialise(self)
        self.see((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    @property
    def reduction(self) -> int:
        """How many pixels of a side become one position of the last stage."""
        return 1 << len(self.depths)

    @torch.no_grad()
    def see(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Standardise what comes in by the mean and the deviation of each channel."""
        scale = torch.as_tensor(std, dtype=torch.float64).reciprocal()
        self.colours.weight.copy_(torch.diag(scale)[:, :, None, None])
        assert self.colours.bias is not None
        self.colours.bias.copy_(-torch.as_tensor(mean, dtype=torch.float64) * scale)
        self.colours.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) <= self.reduction:
            raise InputError(
                f"StyleEncoder expects images (N, 3, H, W) with more than {self.reduction} pixels a side: got shape "
                f"{tuple(images.shape)}; StyleTransfer itself takes any size"
            )
        x = self.colours(images)
        features = []
        for index, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2, ceil_mode=True) if index else x
            for number, unit in enumerate(stage.children()):
                x = unit(x)
                if number == 0:
                    features.append(x)
        return features


class StyleDecoder(nn.Sequential):
    """The mirror of an encoder: its convolutions in reverse, nearest upsampling for its pools, reflection padding, and no norms."""

    def __init__(self, depths: Sequence[int] = (2, 2, 2), *, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for sizes in reversed(_stages(depths, width)):
            for before, after in reversed(sizes):
                layers += [_convolution(after, before), nn.ReLU()]
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        super().__init__(*layers[:-2])  # what gives colours is followed by nothing
        initialise(self)
        colours = self[-1]
        assert isinstance(colours, nn.Conv2d)
        assert colours.bias is not None
        with torch.no_grad():  # begins near grey: far from any picture the losses are hundreds, and their first steps do harm
            colours.weight.mul_(0.1)
            colours.bias.fill_(0.5)


class StyleLosses(NamedTuple):
    """The two losses, and their sum in the proportion that is trained for."""

    content: Tensor
    style: Tensor
    total: Tensor


class StyleTransfer(nn.Module):
    """Pictures in the style of others: decoder(AdaIN(encoder(content), encoder(style))).

    ```
    transfer = ns.models.StyleTransfer.load("style.pt")  # what normsmith stylize has trained
    transfer = ns.models.StyleTransfer(ns.models.load_encoder("vgg_normalised.pth"))  # a decoder to be trained
    picture = transfer(content, [painting, print], weights=[0.7, 0.3], alpha=0.8, preserve_colour=True).clamp(0, 1)
    ```

    The encoder is frozen; without a `decoder` one begins that mirrors it. Pictures are (N, 3, H, W) of 0 to 1, of any size; a style of
    batch 1 serves all of content. `about` says what the weights are from.
    """

    def __init__(
        self, encoder: StyleEncoder, decoder: StyleDecoder | None = None, *, style_weight: float = 10.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if not style_weight >= 0 or not eps > 0:
            raise OptionError(
                f"StyleTransfer expects style_weight from 0 and eps above it: got style_weight={style_weight!r}, eps={eps!r}"
            )
        self.encoder = encoder.requires_grad_(False).eval()
        self.decoder = decoder or StyleDecoder(encoder.depths, width=encoder.width)
        self.style_weight, self.eps = style_weight, eps
        self.about: dict[str, Any] = {}

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self,
        content: Tensor,
        styles: Tensor | Sequence[Tensor],
        *,
        weights: Sequence[float] | Tensor | None = None,
        alpha: float = 1.0,
        preserve_colour: bool = False,
    ) -> Tensor:
        """`content` in the style of `styles`, mixed by `weights` that sum to 1; `alpha` from 0, which draws content anew, to 1.

        With `preserve_colour` the styles are given the colours of content before, and the result after, as no decoder is exact. Values may
        leave 0 to 1 by a little.
        """
        styles = [styles] if isinstance(styles, Tensor) else list(styles)
        if preserve_colour:
            styles = [match_colours(style, content) for style in styles]
        features = self.encoder(self._whole(content))[-1]
        of_styles = [self.encoder(self._whole(style))[-1] for style in styles]
        drawn = self.decoder(adain(features, of_styles, weights=weights, alpha=alpha, eps=self.eps))
        picture: Tensor = drawn[..., : content.shape[2], : content.shape[3]]
        return match_colours(picture, content) if preserve_colour else picture

    def losses(self, content: Tensor, style: Tensor) -> StyleLosses:
        """What is trained: the result is to have the features asked for, and in every stage the mean and deviation of the style."""
        wanted = self.encoder(style)
        target = adain(self.encoder(content)[-1], wanted[-1], eps=self.eps)
        drawn = self.encoder(self.decoder(target))
        to_content, to_style = F.mse_loss(drawn[-1], target), self.style_distance(drawn, wanted)
        return StyleLosses(to_content, to_style, to_content + self.style_weight * to_style)

    def style_distance(self, features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """The mean squared differences of the means and of the deviations of features, summed over stages."""
        terms = []
        for one, other in zip(features, wanted, strict=True):
            (mean, std), (other_mean, other_std) = self._statistics(one), self._statistics(other)
            terms += [F.mse_loss(mean, other_mean.expand_as(mean)), F.mse_loss(std, other_std.expand_as(std))]
        return torch.stack(terms).sum()

    def save(self, path: str | Path) -> None:
        """Write the encoder and the decoder to one file, which `StyleTransfer.load` reads."""
        shape = {"depths": list(self.encoder.depths), "width": self.encoder.width}
        options = {"style_weight": self.style_weight, "eps": self.eps}
        state = {"format": FORMAT, **shape, "options": options, "about": self.about, "state": self.state_dict()}
        write_whole(Path(path), lambda part: torch.save(state, part))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` has written, in evaluation."""
        found = read(path, "a model that normsmith stylize, or StyleTransfer.save, has written")
        if found.get("format") != FORMAT:
            raise ModelError(f"{path} is expected to be a model of style transfer ({FORMAT!r}): got {found.get('format')!r}")
        with torch.random.fork_rng(devices=[]):  # weights are drawn only to be replaced
            model = cls(StyleEncoder(found["depths"], width=found["width"]), **found["options"])
        model.load_state_dict(found["state"])
        model.about = dict(found["about"])
        return model.eval()

    def _statistics(self, features: Tensor) -> tuple[Tensor, Tensor]:
        moments, _ = measure(features, sees="cells")
        assert moments is not None
        return moments.mean, (moments.var + self.eps).sqrt()

    def _whole(self, images: Tensor) -> Tensor:
        """The images with their last row and column repeated until pools leave no rest, and there is something to reflect."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not images.numel():
            raise InputError(
                f"StyleTransfer expects pictures as floats of shape (N, 3, H, W): got {images.dtype} of shape {tuple(images.shape)}"
            )
        step = self.encoder.reduction
        below, right = (max(2 * step, -(-side // step) * step) - side for side in images.shape[2:])
        return F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images


def read(path: str | Path, what: str) -> Mapping[str, Any]:
    """A mapping from a file of torch, without running what it holds."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} is expected to be {what}: got {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001  (a file cut short, or of another kind, fails in many ways)
        raise ModelError(f"{path} is expected to be {what}: got {type(error).__name__} on reading it") from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path} is expected to be {what}: got {type(found).__name__}; save a state_dict")
    return found


def _stages(depths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Channels before and after each convolution of each stage."""
    before, stages = 3, []
    for index, depth in enumerate((*depths, 1)):
        after = width * 2**index
        stages.append([(before if number == 0 else after, after) for number in range(depth)])
        before = after
    return stages


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, padding_mode="reflect")


def _unit(before: int, after: int, norm: Norm) -> nn.Sequential:
    parts = (("conv", _convolution(before, after)), ("norm", normalizer(norm, after)), ("act", nn.ReLU()))
    return nn.Sequential(OrderedDict(parts))

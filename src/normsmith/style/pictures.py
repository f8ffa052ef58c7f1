"""Pictures from files and to files, by pillow: any size and mode, upright, with what is transparent kept aside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normsmith.data._files import content
from normsmith.data._images import as_bytes, opened
from normsmith.data._package import imported
from normsmith.errors import OptionError, ResultsError
from normsmith.writing import write_whole

_OWNER = "normsmith stylize"
_SEES_THROUGH = {".png", ".webp", ".tif", ".tiff"}
_QUALITY = {".jpg": 95, ".jpeg": 95, ".webp": 95}


@dataclass(frozen=True, eq=False)
class Picture:
    """Colours (1, 3, H, W) and, where a picture is not opaque, opacity (1, 1, H, W), both of 0 to 1."""

    colours: Tensor
    opacity: Tensor | None

    def scaled(self, shorter: int) -> "Picture":
        """The picture with its shorter side brought to so many pixels, smoothed where it shrinks."""
        height, width = self.colours.shape[2:]
        scale = shorter / min(height, width)
        size = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
        return Picture(_resized(self.colours, size), None if self.opacity is None else _resized(self.opacity, size))


def read_picture(path: Path) -> Picture:
    """The picture of a file, turned as its camera says; what is transparent in it gets the mean colour of what is not."""
    turn = imported("PIL.ImageOps", "pillow", _OWNER).exif_transpose
    with opened(content(path), str(path), _OWNER) as file:
        image = turn(file)
        see_through = image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info
        image = image.convert("RGBA") if see_through else image
        colours = as_bytes(image)[None].float().expand(1, 3, -1, -1) / 255
        opacity = as_bytes(image.getchannel("A"))[None].float() / 255 if see_through else None
    if opacity is None or bool((opacity == 1).all()):
        return Picture(colours, None)
    seen = opacity if bool(opacity.any()) else torch.ones_like(opacity)
    mean = (colours * seen).sum((2, 3), keepdim=True) / seen.sum()
    return Picture(opacity * colours + (1 - opacity) * mean, opacity)


def write_picture(path: Path, picture: Picture) -> None:
    """Write a file of the kind that its name ends in; where that cannot be transparent, on white."""
    kind = kind_of(path)
    colours, opacity = picture.colours[0].clamp(0, 1), picture.opacity
    if opacity is not None and path.suffix.lower() in _SEES_THROUGH:
        values = torch.cat([colours, opacity[0]])
    else:
        values = colours if opacity is None else opacity[0] * colours + (1 - opacity[0])
    data = values.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = imported("PIL.Image", "pillow", _OWNER).fromarray(data)
    options: dict[str, Any] = {"quality": _QUALITY[path.suffix.lower()]} if path.suffix.lower() in _QUALITY else {}
    try:
        write_whole(path, lambda part: image.save(part, kind, **options))
    except OSError as error:
        raise ResultsError(f"{path} is expected to be a file that can be written: got {error.strerror or error}") from None


def kind_of(path: Path) -> str:
    """What pillow calls the kind of file that a name stands for, or one sentence."""
    reader = imported("PIL.Image", "pillow", _OWNER)
    kind = reader.registered_extensions().get(path.suffix.lower())
    if kind not in reader.SAVE:
        raise OptionError(f"a picture is expected to be written as .png, .jpg, .webp or .tif: got {str(path)!r}")
    return str(kind)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)

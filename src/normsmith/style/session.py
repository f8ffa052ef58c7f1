"""`normsmith stylize`: pictures in, a model that is there or is trained, a picture out."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from normsmith.data._files import ENVIRONMENT
from normsmith.errors import ModelError, OptionError
from normsmith.models.style_transfer import StyleEncoder, StyleTransfer
from normsmith.models.style_weights import load_decoder, load_encoder
from normsmith.style.keeping import digest
from normsmith.style.pictures import Picture, kind_of, read_picture, write_picture
from normsmith.style.settings import Settings
from normsmith.style.training import train_style_transfer
from normsmith.writing import user_cache

MINUTES = 15.0


@dataclass(frozen=True)
class Request:
    """What is to be drawn, and with what."""

    content: Path
    styles: Sequence[Path]
    out: Path
    weights: Sequence[float] | None = None
    alpha: float = 1.0
    preserve_colour: bool = False
    size: int | None = None
    encoder: Path | None = None
    decoder: Path | None = None
    model: Path | None = None
    data: Path | None = None
    minutes: float | None = None
    seed: int | None = None

    def shares(self) -> list[float]:
        """The weights of the styles, brought to the sum 1."""
        weights = list(self.weights) if self.weights is not None else [1.0] * len(self.styles)
        if len(weights) != len(self.styles) or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise OptionError(
                f"stylize expects a weight for each style, none negative, one above zero: got {weights} for {len(self.styles)} styles"
            )
        return [weight / sum(weights) for weight in weights]


def run(request: Request, console: Console) -> dict[str, Any]:
    """Do it; what is wrong with the pictures or options is said before anything is trained."""
    shares = request.shares()
    kind_of(request.out)
    if not request.out.parent.is_dir():
        raise OptionError(
            f"stylize expects to write to a folder that is there: got {str(request.out)!r}; make its folder first"
        )
    if not 0 <= request.alpha <= 1:
        raise OptionError(f"stylize expects alpha, the strength of the style, from 0 (none) to 1: got {request.alpha!r}")
    if request.size is not None and request.size < 1:
        raise OptionError(f"stylize expects size, the shorter side in pixels, as a positive integer: got {request.size!r}")
    content = read_picture(request.content)
    content = content if request.size is None else content.scaled(request.size)
    shorter = min(content.colours.shape[2:])
    styles = [read_picture(path).scaled(shorter).colours for path in request.styles]
    model = _model(request, console)
    with torch.inference_mode():
        drawn = model(content.colours, styles, weights=shares, alpha=request.alpha, preserve_colour=request.preserve_colour)
    write_picture(request.out, Picture(drawn, content.opacity))
    height, width = drawn.shape[2:]
    return {"written": str(request.out), "width": width, "height": height, "about": model.about}


def default_path(encoder: StyleEncoder | None = None) -> Path:
    """Where the model is kept that nobody named a place for; one for each encoder."""
    name = "style.pt" if encoder is None else f"style-{digest(encoder)[:12]}.pt"
    return user_cache() / "normsmith" / name


def _model(request: Request, console: Console) -> StyleTransfer:
    """The model of the request, trained if it is not there."""
    if request.decoder is not None and (request.encoder is None or request.model is not None):
        raise OptionError(
            "stylize expects --decoder with the --encoder that it draws for, and without --model: got another choice"
        )
    encoder = load_encoder(request.encoder) if request.encoder is not None else None
    if request.decoder is not None and encoder is not None:
        return StyleTransfer(encoder, load_decoder(request.decoder)).eval()
    path = request.model or default_path(encoder)
    if not path.exists():
        return _trained(request, path, encoder, console)
    given = {"--data": request.data, "--minutes": request.minutes, "--seed": request.seed}
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        console.print(f"{path} is trained already, without {' and '.join(unused)}: remove it to train anew", soft_wrap=True)
    model = StyleTransfer.load(path)
    if encoder is not None and digest(encoder) != digest(model.encoder):
        raise ModelError(
            f"{path} is expected to be trained with the encoder of {request.encoder}: got another; give another --model"
        )
    return model


def _trained(request: Request, path: Path, encoder: StyleEncoder | None, console: Console) -> StyleTransfer:
    if request.data is None and not os.environ.get(ENVIRONMENT):
        raise OptionError(
            f"stylize has no model at {path} yet and expects pictures to train one from: got none; give --data, the folder of "
            f"Tiny ImageNet, or set {ENVIRONMENT}"
        )
    minutes = MINUTES if request.minutes is None else request.minutes
    settings = Settings(minutes=minutes, seed=request.seed or 0)
    what = (
        f"an encoder on the classes of {settings.pictures}, then a decoder"
        if encoder is None
        else f"a decoder for {request.encoder} on the pictures of {settings.pictures}"
    )
    console.print(
        f"there is no model at {path} yet: training {what}, for at most {minutes:g} minutes; it is kept there for the next time, "
        "and goes on where it was if it is interrupted",
        soft_wrap=True,
    )
    return train_style_transfer(path, root=request.data, encoder=encoder, settings=settings, console=console)

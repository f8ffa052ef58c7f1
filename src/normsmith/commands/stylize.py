"""`stylize`: a picture in the style of others."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative="")]


def stylize(
    content: Path,
    style: Path,
    /,
    *,
    out: Annotated[Path, Parameter(alias="-o")],
    more: Annotated[list[Path] | None, Parameter(name="--style")] = None,
    weights: list[float] | None = None,
    alpha: float = 1.0,
    preserve_colour: Flag = False,
    size: int | None = None,
    encoder: Path | None = None,
    decoder: Path | None = None,
    model: Path | None = None,
    data: Path | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Draw a picture in the style of another: adaptive instance norm between an encoder and a decoder.

    The first time both are trained, on pictures below --data; the model is kept for later.

    Parameters
    ----------
    content
        The picture to draw.
    style
        The picture whose style it gets.
    out
        The file to write: .png, .webp and .tif keep what is transparent, .jpg and others have white there.
    more
        A further style, as often as needed.
    weights
        How much of each style, in their order, as often as there are styles (default: of each as much).
    alpha
        The strength of the style, from 0 to 1.
    preserve_colour
        Keep the colours of content: the mean and covariance of them.
    size
        Bring the shorter side of content to so many pixels first (default: as it is); styles are brought to the same.
    encoder
        Weights of VGG-19 to use: the state_dict of torchvision's, or the normalised one of the authors of AdaIN.
    decoder
        Weights of their decoder for it: then nothing is trained.
    model
        Where the trained model is, or is to be kept (default: the user's cache folder).
    data
        The folder of Tiny ImageNet, and of PACS if it is there, to train from (default: the environment variable NORMSMITH_DATA).
    minutes
        The time that training may take (default: 15).
    seed
        Of the training (default: 0).
    as_json
        Print what was written, and with what, as JSON.
    """
    from rich.console import Console

    from normsmith.style import session

    styles = [style, *(more or [])]
    request = session.Request(
        content, styles, out, weights, alpha, preserve_colour, size, encoder, decoder, model, data, minutes, seed
    )
    found = session.run(request, Console(stderr=True))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(f"written: {out}", file=sys.stderr)

"""What style transfer gives on held-out pictures: `python benchmarks/style.py [MODEL] [DATA] [GRID]`.

MODEL is a file of `normsmith stylize` (default: the one in the user's cache folder). DATA has pictures in `style-transfer/content` and
`style-transfer/style` (default: NORMSMITH_DATA). GRID is a file to draw all pairs into.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from normsmith.bench import record
from normsmith.models.style_transfer import StyleTransfer
from normsmith.style.pictures import Picture, read_picture, write_picture
from normsmith.style.session import default_path

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIZE = 256


def main() -> None:
    """Print the tables, and draw the grid."""
    given = dict(enumerate(sys.argv[1:]))
    model = StyleTransfer.load(given.get(0, default_path()))
    folder = Path(given.get(1, os.environ.get("NORMSMITH_DATA", "."))) / "style-transfer"
    contents, styles = (dict(pictures(folder / kind)) for kind in ("content", "style"))
    around = record.circumstances()
    console = Console(width=120)
    console.print(
        f"{around['machine']}, torch {around['torch']}; {len(contents)} contents, {len(styles)} styles of {SIZE} pixels"
    )
    console.print(f"model: {model.about}")
    with torch.inference_mode():
        console.print(over_alpha(model, contents, styles))
        console.print(reconstruction(model, contents, next(iter(styles.values()))))
        console.print(colours(model, contents, styles))
        console.print(costs(model, contents, styles))
        if 2 in given:
            grid(Path(given[2]), model, contents, styles)


def pictures(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The pictures of a folder by name, their middle as a square."""
    for path in sorted(folder.iterdir()):
        whole = read_picture(path).scaled(SIZE).colours
        top, left = ((side - SIZE) // 2 for side in whole.shape[2:])
        yield path.stem, whole[..., top : top + SIZE, left : left + SIZE]


def over_alpha(model: StyleTransfer, contents: dict[str, Tensor], styles: dict[str, Tensor]) -> Table:
    """Distances to content and to style, means over all pairs; as landmarks those of the two pictures themselves."""
    of_content = [model.encoder(x) for x in contents.values()]
    of_style = [model.encoder(x) for x in styles.values()]
    table = Table(title="over alpha: content distance at the last stage, style distance over all")
    for heading in ("picture", "to content", "to style"):
        table.add_column(heading, justify="right")

    def row(name: str, drawn: list[tuple[list[Tensor], list[Tensor], list[Tensor]]]) -> None:
        to_content = statistics.mean(float(F.mse_loss(d[-1], c[-1])) for d, c, _ in drawn)
        to_style = statistics.mean(float(model.style_distance(d, s)) for d, _, s in drawn)
        table.add_row(name, f"{to_content:.3f}", f"{to_style:.3f}")

    row("content itself", [(c, c, s) for c in of_content for s in of_style])
    for alpha in ALPHAS:
        found = []
        for x, c in zip(contents.values(), of_content, strict=True):
            for y, s in zip(styles.values(), of_style, strict=True):
                found.append((model.encoder(model(x, y, alpha=alpha).clamp(0, 1)), c, s))
        row(f"alpha {alpha}", found)
    row("style itself", [(s, c, s) for c in of_content for s in of_style])
    return table


def reconstruction(model: StyleTransfer, contents: dict[str, Tensor], style: Tensor) -> Table:
    """How near the picture drawn at alpha 0 is to content, in decibels."""
    table = Table("content", "PSNR at alpha 0, dB", title="reconstruction")
    found = {}
    for name, x in contents.items():
        found[name] = -10 * math.log10(float(F.mse_loss(model(x, style, alpha=0.0).clamp(0, 1), x)))
        table.add_row(name, f"{found[name]:.1f}")
    table.add_row("mean", f"{statistics.mean(found.values()):.1f}")
    return table


def colours(model: StyleTransfer, contents: dict[str, Tensor], styles: dict[str, Tensor]) -> Table:
    """How far the mean colour is from that of content, as the root of the mean square over channels, of 255."""
    table = Table("colours", "mean colour off by", title="colours, over all pairs")
    for keep in (False, True):
        off = [
            255 * float((model(x, y, preserve_colour=keep).clamp(0, 1) - x).mean((2, 3)).square().mean().sqrt())
            for x in contents.values()
            for y in styles.values()
        ]
        table.add_row("preserved" if keep else "as the style", f"{statistics.mean(off):.1f}")
    return table


def costs(model: StyleTransfer, contents: dict[str, Tensor], styles: dict[str, Tensor]) -> str:
    """The time of one picture."""
    x, y = next(iter(contents.values())), next(iter(styles.values()))
    times = []
    for _ in range(9):
        began = time.perf_counter()
        model(x, y)
        times.append(time.perf_counter() - began)
    return f"one picture of {SIZE}×{SIZE} with one style: {statistics.median(times):.2f} s (median of {len(times)})"


def grid(path: Path, model: StyleTransfer, contents: dict[str, Tensor], styles: dict[str, Tensor]) -> None:
    """Contents down, styles across, and what is drawn of them."""
    small = {name: F.interpolate(y, (SIZE // 2, SIZE // 2), mode="area") for name, y in (contents | styles).items()}
    empty = torch.ones_like(next(iter(small.values())))
    rows = [torch.cat([empty, *(small[name] for name in styles)], 3)]
    for name, x in contents.items():
        drawn = [F.interpolate(model(x, y).clamp(0, 1), (SIZE // 2, SIZE // 2), mode="area") for y in styles.values()]
        rows.append(torch.cat([small[name], *drawn], 3))
    write_picture(path, Picture(torch.cat(rows, 2), None))
    print(f"written: {path}")


if __name__ == "__main__":
    main()

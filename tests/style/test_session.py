"""`normsmith stylize`: pictures in, a picture out, and what is wrong in one sentence."""

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from style.helpers_style import tiny_imagenet

from normsmith.errors import InputError, ModelError, OptionError
from normsmith.models import StyleEncoder, StyleTransfer
from normsmith.style import session
from normsmith.style.pictures import read_picture
from normsmith.style.session import Request
from normsmith.writing import user_cache


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with pictures and a model, where the user's cache is too."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(user_cache()))  # the compiled loops need not be made again
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for name, shape in (("content", (21, 30, 3)), ("grey", (9, 14)), ("first", (40, 50, 3)), ("second", (5, 4, 4))):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    torch.manual_seed(0)
    StyleTransfer(StyleEncoder((1, 1), width=4)).save(tmp_path / "model.pt")
    return tmp_path


def stylize(place, content="content.png", styles=("first.png",), out="out.png", model="model.pt", **options):
    console = Console(file=StringIO(), width=200)
    paths = {"model": place / model if model else None, **options}
    request = Request(place / content, [place / style for style in styles], place / out, **paths)
    found = session.run(request, console)
    with Image.open(place / out) as image:
        return np.asarray(image), found, console.file.getvalue()


def call(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "normsmith", "stylize", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_sizes_and_kinds(place):
    assert stylize(place)[0].shape == (21, 30, 3)
    assert stylize(place, content="grey.png", styles=["second.png", "grey.png"])[0].shape == (9, 14, 3)
    assert stylize(place, content="second.png", out="out.webp")[0].shape == (5, 4, 4), "what is transparent stays so"
    drawn, found, said = stylize(place, size=10, out="out.jpg")
    assert drawn.shape == (10, 14, 3)
    assert (found["width"], found["height"], found["written"]) == (14, 10, str(place / "out.jpg"))
    assert not said


def test_the_picture_is_that_of_the_model(place):
    drawn, *_ = stylize(place, styles=["first.png", "content.png"], weights=[3, 1], alpha=0.5)
    content, style = (read_picture(place / f"{name}.png") for name in ("content", "first"))
    model = StyleTransfer.load(place / "model.pt")
    with torch.no_grad():
        y = model(content.colours, [style.scaled(21).colours, content.colours], weights=[0.75, 0.25], alpha=0.5)
    assert np.array_equal(drawn, y[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())


def test_preserved_colours(place):
    values = np.asarray(Image.new("RGB", (30, 24), (90, 120, 150))).copy()
    values += np.random.default_rng(1).integers(0, 40, (24, 30, 1), dtype=np.uint8)
    Image.fromarray(values).save(place / "blue.png")
    kept, *_ = stylize(place, content="blue.png", preserve_colour=True)
    assert np.abs(kept.mean((0, 1)) - values.mean((0, 1))).max() < 2
    plain, *_ = stylize(place, content="blue.png")
    assert np.abs(plain.mean((0, 1)) - values.mean((0, 1))).max() > 5


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"styles": ["none.png"]}, InputError, "none.png is expected to be a file that can be read"),
        ({"content": "model.pt"}, InputError, "model.pt is expected to be an image"),
        ({"out": "out.txt"}, OptionError, "written as .png"),
        ({"out": "none/out.png"}, OptionError, "make its folder first"),
        ({"alpha": 2.0}, OptionError, "alpha, the strength of the style"),
        ({"alpha": float("nan")}, OptionError, "alpha, the strength of the style"),
        ({"size": 0}, OptionError, "size, the shorter side"),
        ({"weights": [1.0, 2.0]}, OptionError, "a weight for each style"),
        ({"weights": [0.0]}, OptionError, "one above zero"),
        ({"weights": [float("inf")]}, OptionError, "a weight for each style"),
        ({"model": "new.pt", "data": Path("nowhere")}, InputError, "expects a root that is there"),
        ({"model": "content.png"}, ModelError, "content.png is expected to be a model"),
        ({"model": None}, OptionError, "give --data, the folder of Tiny ImageNet"),
        ({"minutes": -1.0, "model": "new.pt", "data": Path("here")}, OptionError, "minutes above zero"),
    ],
)
def test_what_is_wrong_is_one_sentence(place, monkeypatch, options, error, sentence):
    monkeypatch.delenv("NORMSMITH_DATA", raising=False)
    with pytest.raises(error, match=sentence) as caught:
        stylize(place, **options)
    assert "\n" not in str(caught.value)
    assert not list(place.glob("out*"))


def vgg(path, seed=0):
    """A state_dict of VGG-19's shapes, small numbers."""
    shapes = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), *[(256, 256)] * 3, (512, 256)]
    generator = torch.Generator().manual_seed(seed)
    pairs = [(torch.randn(a, b, 3, 3, generator=generator) / (3 * b**0.5), torch.zeros(a)) for a, b in shapes]
    torch.save({f"{i}.{k}": t for i, pair in enumerate(pairs) for k, t in zip("wb", pair, strict=True)}, path)
    return [(b, a) for a, b in reversed(shapes)]


def test_published_weights(place):
    mirror = vgg(place / "vgg.pth")
    pairs = [(torch.randn(a, b, 3, 3) / (3 * b**0.5), torch.zeros(a)) for a, b in mirror]
    torch.save({f"{i}.{k}": t for i, pair in enumerate(pairs) for k, t in zip("wb", pair, strict=True)}, place / "decoder.pth")
    both = {"encoder": place / "vgg.pth", "decoder": place / "decoder.pth"}
    assert stylize(place, model=None, **both)[0].shape == (21, 30, 3)
    with pytest.raises(OptionError, match="--decoder with the --encoder"):
        stylize(place, model=None, decoder=place / "decoder.pth")
    with pytest.raises(ModelError, match=r"expected to be trained with the encoder of .*: got another"):
        stylize(place, encoder=place / "vgg.pth")
    vgg(place / "other.pth", seed=1)
    paths = {session.default_path(session.load_encoder(place / f"{name}.pth")) for name in ("vgg", "other")}
    assert len({*paths, session.default_path()}) == 3, "each encoder has a model of its own"
    assert all(path.parent == place / "cache" / "normsmith" for path in paths)


def test_the_first_call_trains_and_the_next_one_uses_it(place):
    data = tiny_imagenet(place / "data" / "tiny-imagenet")
    arguments = [place / "content.png", place / "first.png", "--style", place / "grey.png", "--weights", "2", "--weights", "1"]
    first = call(*arguments, "-o", place / "1.png", "--data", data, "--minutes", "0.02", "--preserve-colour")
    assert "there is no model at" in first.stderr
    assert "for at most 0.02 minutes" in first.stderr
    assert "styles are pictures of tiny-imagenet alone" in first.stderr
    assert "encoder accuracy" in first.stderr
    assert f"written: {place / '1.png'}" in first.stderr.replace("\n", "")
    assert (place / "cache" / "normsmith" / "style.pt").exists()
    again = call(*arguments, "-o", place / "2.png", "--preserve-colour", "--json", "--data", data)
    found = json.loads(again.stdout)
    assert found["about"]["pictures"] == ["tiny-imagenet"]
    assert "without --data: remove it to train anew" in again.stderr
    assert (place / "1.png").read_bytes() == (place / "2.png").read_bytes()

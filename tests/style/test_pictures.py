"""Pictures in and out: modes, turns, what is transparent, and files that are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from normsmith.errors import InputError, OptionError, ResultsError
from normsmith.style.pictures import Picture, read_picture, write_picture


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


def drawn(*shape, dtype=np.uint8, high=256):
    return np.random.default_rng(0).integers(0, high, shape, dtype=dtype)


def written(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_colours(path):
    values = drawn(5, 7, 3)
    Image.fromarray(values).save(path)
    picture = read_picture(path)
    assert torch.equal(picture.colours, torch.from_numpy(values).permute(2, 0, 1)[None] / 255)
    assert picture.opacity is None
    write_picture(path, picture)
    assert np.array_equal(written(path), values)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_of_8_and_16_bits(path, dtype, white):
    values = drawn(5, 7, dtype=dtype, high=white + 1)
    Image.fromarray(values).save(path)
    colours = read_picture(path).colours
    assert colours.shape == (1, 3, 5, 7)
    assert float((colours - torch.from_numpy(values.astype(np.float32)) / white).abs().max()) < 0.5 / 255 + 1e-6


def test_cameras_that_were_held_upright(tmp_path):
    path, values = tmp_path / "turned.png", drawn(5, 7, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # what was up is on the right
    Image.fromarray(values).save(path, exif=exif)
    expected = torch.from_numpy(np.rot90(values, -1).copy()).permute(2, 0, 1)[None] / 255
    assert torch.equal(read_picture(path).colours, expected)


def test_what_is_transparent_is_kept_and_not_seen(path):
    values = drawn(4, 4, 4)
    values[..., 3] = 255
    values[:2, :, 3] = 0
    Image.fromarray(values).save(path)
    picture = read_picture(path)
    seen = torch.from_numpy(values[2:, :, :3]).permute(2, 0, 1) / 255
    assert torch.equal(picture.colours[0, :, 2:], seen)
    torch.testing.assert_close(picture.colours[0, :, :2], seen.mean((1, 2), keepdim=True).expand(3, 2, 4))
    write_picture(path, picture)
    assert np.array_equal(written(path)[..., 3], values[..., 3])
    white = path.with_suffix(".bmp")
    write_picture(white, picture)
    assert written(white)[:2].min() == 255


@pytest.mark.parametrize("mode", ["1", "P", "LA", "CMYK", "F", "RGBA"])
def test_other_modes(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode in {"CMYK", "F"} else "picture.png")
    Image.fromarray(drawn(6, 5, 3)).convert(mode).save(path)
    picture = read_picture(path)
    assert picture.colours.shape == (1, 3, 6, 5)
    assert 0 <= float(picture.colours.min()) <= float(picture.colours.max()) <= 1
    assert picture.opacity is None, "all of it is opaque"


def test_nothing_is_opaque(path):
    Image.fromarray(drawn(3, 3, 4) * np.array([1, 1, 1, 0], dtype=np.uint8)).save(path)
    assert read_picture(path).colours.isfinite().all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".PNG"])
def test_kinds_of_files(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    write_picture(path, Picture(torch.full((1, 3, 8, 6), 2.0), None))
    assert written(path).shape == (8, 6, 3)
    assert written(path).min() > 250, "values beyond white are white"
    assert len(list(tmp_path.iterdir())) == 1


def test_sizes():
    picture = Picture(torch.rand(1, 3, 10, 25), torch.rand(1, 1, 10, 25)).scaled(4)
    assert picture.colours.shape == (1, 3, 4, 10)
    assert picture.opacity.shape == (1, 1, 4, 10)
    assert Picture(torch.rand(1, 3, 1, 900), None).scaled(3).colours.shape == (1, 3, 3, 2700)


@pytest.mark.parametrize("data", [None, b"", b"words", b"\x89PNG\r\n\x1a\n cut"])
def test_files_that_are_no_pictures(path, data):
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"picture\.png is expected to be") as error:
        read_picture(path)
    assert "\n" not in str(error.value)


def test_a_picture_that_is_cut(path):
    Image.fromarray(drawn(40, 40, 3)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match="expected to be an image"):
        read_picture(path)


def test_where_nothing_can_be_written(tmp_path):
    picture = Picture(torch.rand(1, 3, 4, 4), None)
    for name in ("out.xyz", "out", "out.psd"):
        with pytest.raises(OptionError, match=r"written as \.png"):
            write_picture(tmp_path / name, picture)
    with pytest.raises(ResultsError, match="can be written: got No such file"):
        write_picture(tmp_path / "none" / "out.png", picture)

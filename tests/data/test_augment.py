"""Augmentations of a whole batch, against the same done sample by sample with the same numbers."""

import math

import pytest
import torch

from normsmith.data.augment import Augmentation
from normsmith.data.dataset import Split
from normsmith.errors import OptionError


def images(number=40, channels=3, height=7, width=9, dtype=torch.uint8):
    x = torch.randint(0, 256, (number, channels, height, width), dtype=torch.uint8)
    return x if dtype == torch.uint8 else x.float() / 255


def applied(spec, x, y=None, mean=0.5):
    y = torch.zeros(len(x), dtype=torch.int64) if y is None else y
    shape = (1, x.shape[1], *(1,) * (x.ndim - 2))
    augment = Augmentation(spec, Split(x, y), torch.full(shape, mean))
    return augment(x, y, augment.draw(len(x), torch.Generator().manual_seed(5), x.device))


def moved(x, down, right):
    """One sample moved in a loop over its pixels."""
    out = torch.zeros_like(x)
    height, width = x.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[..., row, column] = x[..., row - down, column - right]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("frames", [0, 3])
def test_crop(dtype, frames):
    x = images(dtype=dtype)
    if frames:
        x = torch.stack([images(dtype=dtype) for _ in range(frames)], 2)
    out, _ = applied("crop:padding=3", x)
    ways = (3 - torch.randint(7, (len(x), 2), generator=torch.Generator().manual_seed(5))).tolist()
    assert len({tuple(way) for way in ways}) > 10
    for sample, way, got in zip(x, ways, out, strict=True):
        assert torch.equal(got, moved(sample, *way))


def test_crop_moves_the_map_of_a_segmentation():
    x = images(channels=1)
    y = x[:, 0].long()
    out, maps = applied("crop:padding=2", x, y)
    assert torch.equal(out[:, 0].long(), maps)
    assert not torch.equal(maps, y)


def test_flip_with_maps_and_boxes():
    x = images(channels=1)
    out, maps = applied("flip", x, x[:, 0].long())
    assert torch.equal(out[:, 0].long(), maps)
    turned = [torch.equal(o, s.flip(-1)) for o, s in zip(out, x, strict=True)]
    assert 8 < sum(turned) < 32
    assert all(torch.equal(o, s.flip(-1) if t else s) for o, s, t in zip(out, x, turned, strict=True))
    # A box around the only bright pixel stays around it.
    x = torch.zeros(40, 1, 4, 8, dtype=torch.uint8)
    x[:, 0, 1, 6] = 255
    boxes = torch.tensor([[3, 6 / 8, 1 / 4, 7 / 8, 2 / 4]]).repeat(40, 1)
    out, y = applied("flip", x, boxes)
    for image, (label, left, top, right, bottom) in zip(out, y.tolist(), strict=True):
        row, column = divmod(int(image.argmax()), 8)
        assert (label, left, top, right, bottom) == (3, column / 8, row / 4, (column + 1) / 8, (row + 1) / 4)


@pytest.mark.parametrize("size", [1, 4, 5, 30])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout(size, dtype):
    x = images(dtype=dtype)
    out, _ = applied(f"cutout:size={size}", x, mean=0.2)
    generator = torch.Generator().manual_seed(5)
    rows, columns = (torch.randint(n, (len(x),), generator=generator).tolist() for n in (7, 9))
    fill = 51 if dtype == torch.uint8 else 0.2
    for sample, row, column, got in zip(x, rows, columns, out, strict=True):
        expected = sample.clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(top, 0) : top + size, max(left, 0) : left + size] = fill
        assert torch.equal(got, expected)


def test_colour():
    x = images()
    out, _ = applied("colour:brightness=0.3,contrast=0.5,saturation=0.4", x)
    shares = torch.rand(len(x), 3, generator=torch.Generator().manual_seed(5)).T
    factors = [1 + s * (2 * share - 1) for s, share in zip((0.3, 0.5, 0.4), shares, strict=True)]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for sample, bright, contrast, saturation, got in zip(x, *factors, out, strict=True):
        image = (sample / 255 * bright).clamp(0, 1)
        middle = (image * weights).sum(0).mean()
        image = (middle + (image - middle) * contrast).clamp(0, 1)
        grey = (image * weights).sum(0, keepdim=True)
        image = (grey + (image - grey) * saturation).clamp(0, 1)
        torch.testing.assert_close(got, image, rtol=1e-5, atol=1e-6)
    assert out.dtype == torch.float32


def test_one_channel_has_contrast_and_no_saturation():
    x = images(channels=1, dtype=torch.float32)
    out, _ = applied("colour:contrast=0.5", x)
    torch.testing.assert_close(out.mean(), x.mean(), rtol=0.05, atol=0)
    with pytest.raises(OptionError, match="3 channels for saturation: got 1"):
        applied("colour:saturation=0.5", x)


def test_steps_are_taken_in_the_order_written():
    x = images()
    cut_then_moved, _ = applied("cutout:size=4, crop:padding=3", x)
    assert int((cut_then_moved == 0).sum()) > 0
    grey_after, _ = applied("colour:brightness=0.2, cutout:size=4", x)
    assert int((grey_after == 0.5).sum()) >= len(x)


def test_what_targets_cannot_follow_is_refused():
    x = images(channels=1)
    with pytest.raises(OptionError, match="boxes, which might leave the image"):
        applied("crop", x, torch.zeros(len(x), 5))
    with pytest.raises(OptionError, match="clips, whose class may be a direction"):
        applied("flip", x[:, :, None])


def turned(x, angle, larger, slant, right, down):
    """One sample, each pixel read between the four around the place it comes from; what is outside counts as black."""
    _, height, width = x.shape
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            row = (i - (height - 1) / 2 - down * height / 2) / (1 + larger)
            column = (j - (width - 1) / 2 - right * width / 2) / (1 + larger)
            column -= slant * row
            across = math.cos(angle) * column + math.sin(angle) * row + (width - 1) / 2
            along = math.cos(angle) * row - math.sin(angle) * column + (height - 1) / 2
            for r in (math.floor(along), math.floor(along) + 1):
                for c in (math.floor(across), math.floor(across) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += x[:, r, c] * (1 - abs(along - r)) * (1 - abs(across - c))
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_affine(dtype):
    x = images(6, dtype=dtype)
    out, _ = applied("affine:degrees=40,scale=0.3,shear=0.2,shift=0.25", x)
    shares = 2 * torch.rand(6, 5, generator=torch.Generator().manual_seed(5)) - 1
    drawn = shares * torch.tensor([math.radians(40), 0.3, 0.2, 0.5, 0.5])
    for sample, numbers, got in zip(x.float() / 255 if dtype == torch.uint8 else x, drawn.tolist(), out, strict=True):
        torch.testing.assert_close(got, turned(sample, *numbers), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(out[0], out[1])


def test_affine_of_a_quarter_and_of_whole_pixels():
    square = images(1, height=7, width=7, dtype=torch.float32)
    split = Split(square, torch.zeros(1).long())
    step = Augmentation("affine:degrees=90,shift=0.5", split, torch.zeros(1, 3, 1, 1))
    quarter, _ = step(square, torch.zeros(1), [torch.tensor([[math.pi / 2, 0, 0, 0, 0]])])
    torch.testing.assert_close(quarter, square.rot90(1, (3, 2)), rtol=1e-4, atol=1e-5)
    shifted, _ = step(square, torch.zeros(1), [torch.tensor([[0, 0, 0, 2 * 2 / 7, 2 * 1 / 7]])])
    torch.testing.assert_close(shifted[0], moved(square[0], 1, 2), rtol=1e-4, atol=1e-5)


def test_no_bit_of_an_affine_sample_depends_on_the_others():
    x = images(40, dtype=torch.float32)
    augment = Augmentation("affine:degrees=40,shear=0.2", Split(x, torch.zeros(40).long()), torch.zeros(1, 3, 1, 1))
    drawn = augment.draw(40, torch.Generator().manual_seed(5), x.device)
    whole, _ = augment(x, x, drawn)
    for part in (slice(0, 1), slice(7, 20), slice(39, 40)):
        assert torch.equal(augment(x[part], x[part], [numbers[part] for numbers in drawn])[0], whole[part])


@pytest.mark.parametrize(
    ("spec", "targets", "says"),
    [
        ("affine", torch.zeros(40), "degrees, scale, shear or shift over 0"),
        ("affine:scale=2.0", torch.zeros(40), "scale from 0 to 0.9: got 2.0"),
        ("affine:degrees=-5", torch.zeros(40), "degrees from 0 to 180: got -5"),
        ("affine:degrees=5", torch.zeros(40, 5), "images whose target is a class"),
    ],
)
def test_an_affine_map_that_is_refused(spec, targets, says):
    with pytest.raises(OptionError, match=says):
        applied(spec, images(), targets)

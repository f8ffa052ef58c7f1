"""Cutting must not copy what it need not, and the layout decides which loop runs: both are read off shapes and strides alone."""

import pytest
import torch
from helpers import FORMATS

import normsmith as ns
from normsmith.cells import cut, layout, statistics_of


def numbers(*shape):
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


SHAPES = [(4, 6), (4, 6, 5), (4, 6, 5, 3), (4, 6, 5, 3, 2)]


DENSE = [(shape, torch.contiguous_format) for shape in SHAPES] + [(shape, FORMATS[len(shape)]) for shape in SHAPES[2:]]


@pytest.mark.parametrize(("shape", "memory_format"), DENSE, ids=str)
def test_cut_is_a_view(shape, memory_format):
    x = numbers(*shape).contiguous(memory_format=memory_format)
    cells = cut(x)
    assert cells.shape == (4, 6, torch.Size(shape[2:]).numel())
    assert cells.data_ptr() == x.data_ptr()
    assert torch.equal(cells, x.contiguous().view(cells.shape))
    assert cells.view(shape).stride() == x.stride()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cut_of_samples_and_channels_is_a_view(shape):
    x = numbers(*shape)[1::2, 2:5]
    assert cut(x).data_ptr() == x.data_ptr()
    assert torch.equal(cut(x).view(x.shape), x)


def test_cut_copies_only_what_has_no_single_stride():
    x = numbers(2, 3, 4, 6)
    assert cut(x[:, :, :, ::2]).data_ptr() == x.data_ptr(), "every other column, but whole rows: one stride"
    part = x[:, :, 1:3, 1:4]
    assert cut(part).data_ptr() != part.data_ptr()
    assert torch.equal(cut(part), part.reshape(2, 3, 6))


def test_cut_of_nothing():
    assert cut(torch.empty(0, 6, 5, 3)).shape == (0, 6, 15)
    assert cut(torch.empty(4, 6, 0, 3)).shape == (4, 6, 0)


LAYOUTS = {
    "contiguous": (lambda: numbers(2, 3, 5), "rows"),
    "channels_last": (lambda: numbers(2, 5, 3).transpose(1, 2), "columns"),
    "tokens": (lambda: cut(numbers(4, 3)), "columns"),
    "samples of contiguous": (lambda: numbers(4, 3, 5)[::2], "rows"),
    "samples of channels_last": (lambda: numbers(4, 5, 3).transpose(1, 2)[::2], "columns"),
    "channels of contiguous": (lambda: numbers(2, 6, 5)[:, 1:4], "rows"),
    "every other channel of contiguous": (lambda: numbers(2, 6, 5)[:, ::2], "rows"),
    "channels of channels_last": (lambda: numbers(2, 5, 6).transpose(1, 2)[:, 1:4], "columns"),
    "every other channel of channels_last": (lambda: numbers(2, 5, 6).transpose(1, 2)[:, ::2], "neither"),
    "positions of contiguous": (lambda: numbers(2, 3, 9)[:, :, 2:7], "rows"),
    "every other position of contiguous": (lambda: numbers(2, 3, 10)[:, :, ::2], "neither"),
    "every other position of channels_last": (lambda: numbers(2, 10, 3).transpose(1, 2)[:, :, ::2], "columns"),
    "samples last": (lambda: numbers(3, 5, 2).permute(2, 0, 1), "neither"),
    "tokens transposed": (lambda: cut(numbers(3, 4).T), "neither"),
    "expanded over samples": (lambda: numbers(1, 3, 5).expand(2, -1, -1), "neither"),
    "expanded over channels": (lambda: numbers(2, 1, 5).expand(-1, 3, -1), "neither"),
    "expanded over positions": (lambda: numbers(2, 3, 1).expand(-1, -1, 5), "neither"),
    "expanded over a single sample": (lambda: numbers(1, 3, 5).expand(1, -1, -1), "rows"),
    "one position": (lambda: cut(numbers(2, 3, 1, 1)), "columns"),
    "one position of channels_last": (
        lambda: cut(numbers(2, 3, 1, 1).contiguous(memory_format=torch.channels_last)),
        "columns",
    ),
    "one position among many": (lambda: numbers(2, 3, 5)[:, :, 2:3], "neither"),
    "one channel": (lambda: numbers(2, 1, 5), "rows"),
    "one channel of channels_last": (lambda: numbers(2, 5, 1).transpose(1, 2), "rows"),
    "one channel among many": (lambda: numbers(2, 3, 5)[:, 1:2], "rows"),
    "one channel among many, channels_last": (lambda: numbers(2, 5, 3).transpose(1, 2)[:, 1:2], "columns"),
    "one channel, every other position": (lambda: numbers(2, 3, 10)[:, 1:2, ::2], "columns"),
    "one channel, one position": (lambda: cut(numbers(4, 1)), "rows"),
    "one number among many": (lambda: numbers(4, 3, 5)[:, 1:2, 2:3], "rows"),
    "one sample": (lambda: numbers(1, 3, 5), "rows"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_of(name):
    make, expected = LAYOUTS[name]
    assert layout(make()) == expected


@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_layout_follows_the_memory_format(shape):
    x = numbers(*shape)
    assert layout(cut(x)) == "rows"
    assert layout(cut(x.contiguous(memory_format=FORMATS[x.dim()]))) == "columns"


def test_statistics_are_shared_by_samples_or_not():
    cells = numbers(4, 3, 5)
    assert statistics_of(cells, shared=False) == (4, 3)
    assert statistics_of(cells, shared=True) == (1, 3)


def test_what_overlaps_has_no_layout():
    windows = torch.randn(20, 40).unfold(1, 30, 1)
    assert layout(windows) == "neither"
    assert layout(windows[:, :1]) == "rows"
    for name in ("switchable", "instance", "batch"):
        with ns.backend("reference"):
            expected = ns.make(name, 11)(windows)
        torch.testing.assert_close(ns.make(name, 11)(windows), expected, rtol=1e-5, atol=1e-5)

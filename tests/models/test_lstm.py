"""The classifier of sequences: which output it reads, and what it refuses; the LSTM itself is tested in tests/recurrent."""

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns


def sequences(samples=4, steps=5, numbers=3):
    return torch.randn(samples, steps, numbers, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_lengths_are_those_of_packed_sequences():
    model = ns.models.LSTMClassifier(4, in_channels=3, width=6, layers=2).double()
    reference = nn.LSTM(3, 6, 2, batch_first=True).double()
    reference.load_state_dict(model.lstm.state_dict())
    x, lengths = sequences(), torch.tensor([2, 5, 1, 3])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    assert_same(model(x, lengths), model.head(reference(packed)[1][0][-1]), tolerance=1e-14)
    assert_same(model(x), model.head(reference(x)[0][:, -1]), tolerance=1e-14)


def test_images_row_by_row():
    model = ns.models.make("lstm_rows:width=4", in_channels=2, image_size=5, norm="layer")
    image = torch.randn(3, 2, 7, 5)
    rows = torch.stack([image[:, :, r].flatten(1) for r in range(7)], 1)
    output, _ = model.lstm(rows)
    assert output.shape == (3, 7, 4)
    assert_same(model(image), model.head(output[:, -1]))


@pytest.mark.parametrize(
    ("shape", "lengths", "sentence"),
    [
        ((2, 5), None, "expects sequences of 3 numbers"),
        ((2, 5, 4), None, "expects sequences of 3 numbers"),
        ((2, 5, 3), [1], "expects lengths as 2 integers from 1 to 5"),
    ],
)
def test_what_is_wrong_is_said(shape, lengths, sentence):
    model = ns.models.make("lstm:width=4")
    with pytest.raises(ns.InputError, match=sentence):
        model(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))


def test_a_small_gain_keeps_gradients_alike_over_many_steps():
    sizes = {}
    for gain in (0.1, 1.0):
        torch.manual_seed(0)
        model = ns.models.LSTMClassifier(2, in_channels=1, width=20, norm="batch", gain=gain)
        x = torch.randn(16, 60, 1, requires_grad=True)
        torch.autograd.backward(model.train()(x).sum(0), torch.tensor([1.0, -1.0]))
        sizes[gain] = float(x.grad[:, :5].norm() / x.grad[:, -5:].norm())
    assert 0.3 < sizes[0.1] < 3
    assert sizes[1.0] > 10

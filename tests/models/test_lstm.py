"""The LSTM against torch's, its norms, and sequences of unlike lengths."""

import pytest
import torch
from helpers import assert_same
from torch import nn

import normsmith as ns
from normsmith.models._lstm_cell import LSTMCell
from normsmith.models.lstm import _through


def sequences(samples=4, steps=5, numbers=3, seed=0):
    return torch.randn(samples, steps, numbers, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def torchs(model, numbers=3):
    """torch's LSTM with the weights of ours."""
    width, layers = model.cells[0].hidden_size, len(model.cells)
    found = nn.LSTM(numbers, width, layers, batch_first=True).double()
    with torch.no_grad():
        for i, cell in enumerate(model.cells):
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(found, f"{key}_l{i}").copy_(getattr(cell, key))
    return found


@pytest.mark.parametrize("layers", [1, 2])
def test_without_a_norm_it_is_torchs(layers):
    model = ns.models.LSTMClassifier(4, in_channels=3, width=6, layers=layers).double()
    x, y = sequences().requires_grad_(), sequences().requires_grad_()
    with torch.no_grad():
        for cell in model.cells:
            cell.bias_hh.uniform_()
    reference = torchs(model)
    ours = model(x)
    theirs = model.head(reference(y)[0][:, -1])
    assert_same(ours, theirs, tolerance=1e-15)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert_same(x.grad, y.grad, tolerance=1e-14)
    for i, cell in enumerate(model.cells):
        for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            assert_same(getattr(cell, key).grad, getattr(reference, f"{key}_l{i}").grad, key, tolerance=1e-14)


def test_the_cell_is_torchs_and_loads_its_state():
    cell, theirs = LSTMCell(3, 5).double(), nn.LSTMCell(3, 5).double()
    cell.load_state_dict(theirs.state_dict())
    x, h, c = (torch.randn(2, n, dtype=torch.float64) for n in (3, 5, 5))
    for one, other in zip(cell(x, h, c), theirs(x, (h, c)), strict=True):
        assert_same(one, other, tolerance=1e-14)


def test_each_gate_has_a_norm_of_its_own():
    cell = LSTMCell(3, 5, norm="layer", gain=0.125).double()
    x, h, c = (torch.randn(2, n, dtype=torch.float64) for n in (3, 5, 5))
    norm = nn.functional.layer_norm
    gates = []
    for k, (w, u) in enumerate(zip(cell.weight_ih.chunk(4), cell.weight_hh.chunk(4), strict=True)):
        shift = 1.0 if k == 1 else 0.0
        gates.append(0.125 * norm(x @ w.T, (5,)) + 0.125 * norm(h @ u.T, (5,)) + shift)
    i, f, g, o = gates
    after = f.sigmoid() * c + i.sigmoid() * g.tanh()
    found = cell(x, h, c)
    assert_same(found[1], after)
    assert_same(found[0], o.sigmoid() * (0.125 * norm(after, (5,))).tanh())


@pytest.mark.parametrize(("norm", "bias"), [(None, True), ("batch", False), ("rms", True), ("batch:affine=false", True)])
def test_the_forget_gate_is_open_at_the_start(norm, bias):
    cell = LSTMCell(3, 4, norm=norm, gain=0.5)
    assert (cell.bias_ih is not None) == bias
    forget = cell.bias_ih.chunk(4)[1] if bias else cell.norm_ih[1].bias
    assert torch.equal(forget, torch.ones(4))
    others = sum(float(p.detach().sum()) for n, p in cell.named_parameters() if "bias" in n)
    assert others == 4.0
    if norm in {"batch", "rms"}:
        assert all(float(layer.weight.detach().max()) == 0.5 for layer in (*cell.norm_hh, cell.norm_c))
    for part in cell.weight_hh.chunk(4):
        assert torch.allclose(part @ part.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_the_same_weights_whatever_the_norm(norm):
    torch.manual_seed(3)
    cell = LSTMCell(3, 4, norm=norm)
    torch.manual_seed(3)
    other = LSTMCell(3, 4, norm="group")
    assert torch.equal(cell.weight_ih, other.weight_ih)
    assert torch.equal(cell.weight_hh, other.weight_hh)


def test_lengths_are_those_of_packed_sequences():
    model = ns.models.LSTMClassifier(4, in_channels=3, width=6, layers=2).double()
    x, lengths = sequences(), torch.tensor([2, 5, 1, 3])
    reference = torchs(model)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    last = reference(packed)[1][0][-1]
    assert_same(model(x, lengths), model.head(last), tolerance=1e-14)
    garbage = x.clone()
    for n, length in enumerate(lengths.tolist()):
        garbage[n, length:] = float("nan")
    assert_same(model(garbage, lengths), model(x, lengths))


def test_what_has_ended_takes_no_part_in_statistics():
    torch.manual_seed(0)
    cell = LSTMCell(3, 4, norm="batch").double()
    x, lengths = sequences(), torch.tensor([5, 5, 2, 2])
    _, last = _through(cell, x, lengths)
    torch.manual_seed(0)
    other = LSTMCell(3, 4, norm="batch").double()
    h = c = torch.zeros(4, 4, dtype=torch.float64)
    for t in range(2):
        h, c = other(x[:, t], h, c)
    assert_same(last[2:], h[2:])
    h, c = h[:2], c[:2]
    for t in range(2, 5):
        h, c = other(x[:2, t], h, c)
    assert_same(last[:2], h)
    assert_same(cell.norm_c.running_var, other.norm_c.running_var)


def test_shorter_than_the_batch():
    model = ns.models.LSTMClassifier(2, in_channels=3, width=4).double()
    x = sequences()
    assert_same(model(x, torch.tensor([2, 1, 2, 1])), model(x[:, :2], torch.tensor([2, 1, 2, 1])))


def test_images_row_by_row():
    model = ns.models.make("lstm_rows:width=4", in_channels=2, image_size=5, norm="layer")
    image = torch.randn(3, 2, 7, 5)
    rows = torch.stack([image[:, :, r].flatten(1) for r in range(7)], 1)
    outputs, last = _through(model.cells[0], rows, None)
    assert outputs.shape == (3, 7, 4)
    assert_same(model(image), model.head(last))


@pytest.mark.parametrize(
    ("shape", "lengths", "sentence"),
    [
        ((2, 5), None, "expects sequences of 3 numbers"),
        ((2, 5, 4), None, "expects sequences of 3 numbers"),
        ((2, 0, 3), None, "expects sequences of 3 numbers"),
        ((2, 5, 3), [1], "expects lengths as 2 integers from 1 to 5"),
        ((2, 5, 3), [0, 2], "expects lengths as 2 integers from 1 to 5"),
        ((2, 5, 3), [1, 6], "expects lengths as 2 integers from 1 to 5"),
        ((2, 5, 3), [1.0, 2.0], "expects lengths as 2 integers from 1 to 5"),
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

"""What is refused, how the weights begin, and what surgery and the doctor see of the norms inside."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import normsmith as ns
from normsmith.recurrent.step_batch import StepBatchNorm

GATES = {ns.LSTM: 4, ns.GRU: 3}


class Classifier(nn.Module):
    def __init__(self, norm="batch", **options):
        super().__init__()
        self.lstm = ns.LSTM(3, 8, 2, norm=norm, max_steps=7, batch_first=True, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[1][0][-1])


def batches(number=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 6, 3, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(number)]


@pytest.mark.parametrize("kind", GATES)
def test_how_it_begins(kind):
    states = []
    for norm in (None, "layer", "batch"):
        torch.manual_seed(0)
        states.append(kind(3, 4, 2, norm=norm, bidirectional=True).state_dict())
    assert all(torch.equal(value, other[key]) for other in states[1:] for key, value in states[0].items())
    layer = kind(3, 4, norm="batch")
    for gate in layer.weight_hh_l0.chunk(GATES[kind]):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4), rtol=1e-5, atol=1e-5)
    assert [float(p.detach().sum()) for p in (layer.bias_ih_l0, layer.bias_hh_l0)] == [4.0 if kind is ns.LSTM else 0.0, 0.0]
    assert layer.norm_hh_l0.weight.tolist() == pytest.approx([0.1] * len(layer.norm_hh_l0.weight))
    assert layer.norm_hh_l0.bias is None
    other = kind(3, 4, norm="rms", gamma=1.0, bias=False)
    assert {name for name, _ in other.named_parameters() if "bias" in name} == set()


def test_options_of_the_cell():
    layer = ns.LSTM(3, 4, forget_bias=2.0, cell_norm=None, norm="batch:momentum=0.5", max_steps=7)
    assert layer.bias_ih_l0.tolist() == [0.0] * 4 + [2.0] * 4 + [0.0] * 8
    assert not hasattr(layer, "norm_c_l0")
    assert layer.norm_ih_l0.momentum == 0.5
    assert layer.norm_ih_l0.running_mean.shape == (7, 16)
    assert isinstance(ns.LSTM(3, 4, cell_norm="rms").norm_c_l0, ns.RMSNorm)
    assert not list(ns.LSTM(3, 4, norm=None, cell_norm="layer").norm_c_l0.buffers())
    assert repr(ns.GRU(3, 4, 2, batch_first=True)).startswith("GRU(\n  3, 4, norm='layer', num_layers=2, batch_first=True")
    assert "max_steps=7, bias=False" in repr(layer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"hidden_size": 0}, "expects hidden_size as a positive integer: got 0"),
        ({"num_layers": 0}, "expects num_layers as a positive integer"),
        ({"max_steps": 0}, "expects max_steps as a positive integer"),
        ({"gamma": 0}, "expects gamma.* above zero: got 0"),
        ({"h0_noise": -1}, "expects h0_noise.* got -1"),
        ({"dropout": 2}, "expects dropout.* from 0 to 1: got 2"),
        ({"dropout": 0.5}, "expects several layers for dropout"),
        ({"norm": "lair"}, "did you mean 'layer'"),
        ({"norm": "conditional"}, "which also takes condition"),
        ({"norm": nn.LayerNorm(4)}, "expects norm as a name of the catalog, a class, a factory or None: got LayerNorm"),
        ({"norm": int}, "expects norm to make modules: got int"),
    ],
)
@pytest.mark.parametrize("kind", GATES)
def test_options_that_cannot_work(kind, options, sentence):
    with pytest.raises(ns.OptionError, match=sentence):
        kind(**{"input_size": 3, "hidden_size": 4, **options})


@pytest.mark.parametrize(
    ("x", "more", "sentence"),
    [
        (torch.zeros(2, 5, 4), {}, "expects sequences of 3 numbers"),
        (torch.zeros(2, 0, 3), {}, "expects sequences of 3 numbers"),
        (torch.zeros(3), {}, "expects sequences of 3 numbers"),
        (torch.zeros(2, 5, 3, dtype=torch.long), {}, "expects a floating-point input"),
        (torch.zeros(2, 5, 3), {"lengths": torch.tensor([0, 2])}, "expects lengths as 2 integers from 1 to 5"),
        (torch.zeros(2, 5, 3), {"lengths": torch.tensor([1, 6])}, "expects lengths as 2 integers from 1 to 5"),
        (torch.zeros(2, 5, 3), {"lengths": torch.tensor([1.0, 2.0])}, "expects lengths as 2 integers"),
        (torch.zeros(5, 3), {"lengths": torch.tensor([1])}, "expects sequences of 3 numbers"),
        (pack_sequence([torch.zeros(2, 3)]), {"lengths": torch.tensor([2])}, "expects lengths beside a padded input alone"),
        (torch.zeros(2, 5, 3), {"hx": torch.zeros(1, 3, 4)}, r"initial state of shape \(1, 2, 4\): got \(1, 3, 4\)"),
    ],
)
def test_inputs_that_cannot_work(x, more, sentence):
    with pytest.raises(ns.InputError, match=sentence):
        ns.GRU(3, 4, batch_first=True)(x, **more)
    if "hx" in more:
        with pytest.raises(ns.InputError, match="initial states"):
            ns.LSTM(3, 4)(x, (more["hx"],))
        with pytest.raises(ns.InputError, match="expects an input of 3 numbers"):
            ns.LSTMCell(3, 4)(torch.zeros(2, 4))
    with pytest.raises(ns.OptionError, match="expects max_steps"):
        StepBatchNorm(4, max_steps=0)


def test_recalibrate_finds_the_statistics_of_each_step():
    """With one batch, they are those that a momentum of 1 leaves."""
    model, (x, _) = Classifier(), batches()[0]
    ns.recalibrate(model, [x])
    other = Classifier(norm="batch:momentum=1.0")
    other.load_state_dict(model.state_dict())
    other(x)
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, other.get_buffer(key), rtol=1e-4, atol=1e-6)
    assert model.lstm.norm_hh_l0.num_batches_tracked.tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert not torch.equal(model.lstm.norm_hh_l0.running_mean[1], model.lstm.norm_hh_l0.running_mean[2])


def test_frozen_statistics():
    model, (x, _) = Classifier(), batches()[0]
    model(x)
    assert len(ns.freeze(model)) == 6
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    expected = model.eval()(x)
    assert torch.equal(model.train()(x), expected)
    assert all(torch.equal(before[key], buffer) for key, buffer in model.named_buffers())
    other = Classifier()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.train()(x), expected)


@pytest.mark.parametrize(
    ("norm", "target", "kind"),
    [("batch", "layer", ns.LayerNorm), ("layer", "rms", ns.RMSNorm), ("batch", "batch", ns.BatchNorm)],
)
def test_converted(norm, target, kind):
    model, (x, _) = Classifier(norm), batches()[0]
    expected = model.eval()(x)
    conversion = ns.convert(model, target, verify=x)
    assert len(conversion.converted) == 6
    assert all(type(getattr(model.lstm, f"norm_{which}_l1")) is kind for which in ("ih", "hh", "c"))
    model.train()(x).sum().backward()
    conversion.undo()
    assert torch.equal(model.eval()(x), expected)


def test_parameters_are_grouped():
    groups = {group["name"]: group for group in ns.param_groups(Classifier("layer"), 1e-4)}
    assert {name: len(group["params"]) for name, group in groups.items()} == {"weights": 5, "biases": 5, "affine": 8}
    assert groups["affine"]["weight_decay"] == groups["biases"]["weight_decay"] == 0


def test_examined():
    model, loader = Classifier(), batches()
    ns.recalibrate(model, loader)
    found = ns.examine(model, loader)
    assert [row["layer"] for row in found.table] if isinstance(found.table, list) else len(found.table) == 6
    assert not [f.code for f in found.findings if f.code in {"NS203", "NS102", "NS110"}]


def test_synchronised_names_are_found():
    assert set(ns.analysis.refusals(Classifier(), batches()[0][0][:1])) == {
        f"lstm.norm_{which}_l{layer}" for which in ("ih", "hh", "c") for layer in (0, 1)
    }


def test_half_trained_states_load():
    """A state of torch's LSTM fits, but for the norms, which it does not have."""
    layer = ns.LSTM(3, 4, 2, bidirectional=True)
    found = layer.load_state_dict(nn.LSTM(3, 4, 2, bidirectional=True).state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert all(key.startswith("norm_") for key in found.missing_keys)


def test_signatures_name_the_options_and_subclasses_have_their_own():
    class Bare(ns.LSTM):
        def __init__(self, size):
            super().__init__(size, size, norm=None)

    class Passing(ns.GRU):
        def __init__(self, size, **options):
            super().__init__(size, size, **options)

    class Layer(ns.BatchNorm):
        def __init__(self, size, **options: dict[str, float]):
            super().__init__(size, **options)

    assert {"norm", "cell_norm", "forget_bias", "dropout"} <= inspect.signature(ns.LSTM).parameters.keys()
    assert inspect.signature(ns.LSTMCell).parameters["forget_bias"].default == 1.0
    assert not {"cell_norm", "forget_bias", "options"} & inspect.signature(ns.GRU).parameters.keys()
    assert list(inspect.signature(Bare).parameters) == ["size"]
    assert list(inspect.signature(Passing).parameters) == ["size", "options"]
    assert "momentum" in inspect.signature(Layer).parameters
    assert Passing(3, norm="rms").norm == "rms"
    for wrong in (lambda: ns.GRU(3, 4, cell_norm="layer"), lambda: ns.LSTMCell(3, 4, nrm="layer")):
        with pytest.raises(TypeError, match=r"(GRU|LSTMCell)\.__init__\(\) got an unexpected keyword argument"):
            wrong()

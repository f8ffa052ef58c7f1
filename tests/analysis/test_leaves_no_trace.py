"""Everything in the room of analyses leaves the model as it was, to the bit, also when it raises."""

import copy

import pytest
import torch
from analysis.helpers_analysis import changed, everything, record
from torch import nn
from torch.nn.functional import cross_entropy

import normsmith as ns

a = ns.analysis
QUESTIONS = {
    "covariate_shift": lambda model, batch: a.covariate_shift(model, cross_entropy, batch, lr=0.1),
    "optimizer": lambda model, batch: a.covariate_shift(
        model, cross_entropy, batch, optimizer=torch.optim.Adam(model.parameters(), lr=0.1)
    ),
    "smoothness": lambda model, batch: a.smoothness(model, cross_entropy, batch, lr=0.1),
    "across_runs": lambda model, batch: a.across_runs(model, cross_entropy, [batch, batch], rates=(0.1, 0.01)),
    "kronecker": lambda model, batch: a.fisher_blocks(model, [batch, batch]),
    "exact": lambda model, batch: a.fisher_blocks(model, [batch, batch], kind="exact", draws=None),
    "fisher_matrix": lambda model, batch: a.fisher_matrix(model, batch, draws=1),
    "natural_step": a.natural_step,
    "refusals": a.refusals,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_trace(name):
    model, batch = everything()
    before = record(model)
    QUESTIONS[name](model, batch)
    assert changed(before, record(model)) == []


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_trace_when_the_model_raises(name):
    model, batch = everything(fails_at=1 if name in {"fisher_matrix", "refusals"} else 2)
    before = record(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        QUESTIONS[name](model, batch)
    assert changed(before, record(model)) == []


@pytest.mark.parametrize("name", ["across_runs", "fisher_blocks"])
def test_no_trace_when_the_loader_raises(name):
    model, batch = everything()
    before = record(model)

    def loader():
        yield batch
        torch.randn(3)
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        a.across_runs(model, cross_entropy, loader()) if name == "across_runs" else a.fisher_blocks(model, loader())
    assert changed(before, record(model)) == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", QUESTIONS)
def test_no_trace_on_a_gpu(name):
    model, batch = everything()
    model.cuda()
    before, state = record(model), torch.cuda.get_rng_state()
    QUESTIONS[name](model, batch)
    assert changed(before, record(model)) == []
    assert torch.equal(state, torch.cuda.get_rng_state())


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(name, mode):
    model, batch = everything()
    with mode():
        before = record(model)
        QUESTIONS[name](model, batch)
        assert changed(before, record(model)) == []


def test_the_record_sees_what_a_forward_moves():
    model, batch = everything()
    before = record(model)
    model(batch[0])
    assert {"tensors", "own", "memory", "random"} <= set(changed(before, record(model)))


def test_hooks_that_the_model_sets_while_running_are_gone():
    class Setting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            self.layer.register_forward_hook(lambda *_: None)
            self.extra = x
            return self.layer(x)

    model = Setting()
    a.smoothness(model, cross_entropy, (torch.randn(3, 2), torch.tensor([0, 1, 0])), lr=0.1)
    assert not model.layer._forward_hooks
    assert not hasattr(model, "extra")


def test_recurrent_layers_keep_their_own_weights():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    model = Recurrent()
    twin = copy.deepcopy(model)
    x, y = torch.randn(4, 5, 2), torch.tensor([0, 1, 2, 0])
    found = a.covariate_shift(model, cross_entropy, (x, y), lr=0.5)
    assert found["lstm"].gradient > 0
    assert all(one is p for one, p in zip(model.lstm._flat_weights, model.lstm.parameters(), strict=True))
    assert torch.equal(model(x), twin(x))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.DataParallel(nn.Linear(2, 2)), "inside DataParallel"),
        (nn.Sequential(nn.LazyLinear(2)), "'0.weight', which is lazy"),
        (nn.Linear(2, 2).requires_grad_(False), "parameters that require a gradient: got none"),
    ],
)
def test_models_that_cannot_be_held(model, words):
    with pytest.raises(ns.ModelError, match=words):
        a.smoothness(model, cross_entropy, (torch.randn(3, 2), torch.tensor([0, 1, 0])), lr=0.1)


def test_batches_of_all_kinds():
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    model = nn.Linear(2, 2)
    expected = a.smoothness(model, cross_entropy, (x, y), lr=0.1).losses

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model

        def forward(self, x, y):
            return {"loss": cross_entropy(self.inside(x), y)}

    whole = a.smoothness(Named(), lambda output, _: output["loss"], {"x": x, "y": y}, lr=0.1).losses
    assert torch.equal(whole, expected)
    chosen = a.smoothness(
        model, lambda output, target: cross_entropy(output, target[0]), (x, y, "name"), lr=0.1, forward=lambda m, b: m(b[0])
    )
    assert torch.equal(chosen.losses, expected)
    alone = a.smoothness(model, lambda output, target: (output - target).square().mean(), x, lr=0.1)
    assert alone.loss == pytest.approx((model(x) - x).square().mean().item())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda output, _: output, r"a tensor of shape \(3, 2\)"),
        (lambda output, _: output.mean().item(), "got float"),
        (lambda output, _: output.detach().mean(), "without a gradient"),
    ],
)
def test_losses_that_are_none(loss, words):
    with pytest.raises(ns.OptionError, match=words):
        a.smoothness(nn.Linear(2, 2), loss, torch.randn(3, 2), lr=0.1)


def test_a_loss_that_looks_at_the_model_sees_the_weights_in_question():
    model = nn.Linear(2, 2).double()
    x = torch.randn(3, 2).double()

    def decay(output, _):
        return sum(p.square().sum() for p in model.parameters()) / 2 + 0 * output.sum()

    found = a.smoothness(model, decay, x, steps=[0.5])
    start = sum(p.square().sum().item() for p in model.parameters()) / 2
    assert found.losses.item() == pytest.approx(start / 4, abs=1e-12)


def test_normsmith_is_imported_without_torch():
    import subprocess
    import sys

    code = "import sys, normsmith as ns; assert 'torch' not in sys.modules; ns.analysis.bn_vjp; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
